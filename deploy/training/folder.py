"""A model folder as Triton and the job read it, and the configurations of its repository."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from flink_jobs.errors import EddyError

LEARNT_FILES = ("decoder.onnx", "encoder.npz", "check.npz")
DIGESTED = (*LEARNT_FILES, "prior.json", "model.py")
CARD, PAGE = "card.json", "card.md"


def check_free(out: Path) -> None:
    """Refuse a folder that holds a model: a server or a job may be reading it.

    Raises:
        EddyError: it does.
    """
    if out.exists() and (not out.is_dir() or any((out / name).exists() for name in DIGESTED)):
        raise EddyError(
            f"--out: expected a new folder, found a model in {out}; name another one, such as "
            f"{out.parent / 'NUMBER'} with the next number"
        )


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that card.json answers for, hex."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in DIGESTED
        if (folder / name).exists()
    }


def publish(made: Path, out: Path) -> None:
    """Move a finished folder to its place, whole or not at all where `out` is new."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        made.rename(out)
        return
    for path in sorted(made.iterdir()):
        shutil.move(path, out / path.name)


def write_configs(source: Path, out: Path, model_version: str) -> list[Path]:
    """Give the model of `out` its configurations where it stands in a repository of its own.

    That is a folder MODEL/NUMBER without MODEL/configs and MODEL/config.pbtxt. Configurations that
    are there belong to all versions and are left alone: what is served, not this training, decides
    on instances and devices, and the weights' name is in the card.

    Args:
        source: folder of configurations to copy.
        out: the version's folder.
        model_version: name of the weights, for configurations that name them.

    Returns:
        The files written; none where there is another's repository, or no repository.
    """
    configs = out.parent / "configs"
    other = [p for p in out.parent.iterdir() if p.is_dir() and p.name.isdigit() and p != out]
    if not out.name.isdigit() or configs.exists() or (out.parent / "config.pbtxt").exists():
        return []
    if other or not source.is_dir():
        return []
    configs.mkdir()
    written = []
    for path in sorted(source.glob("*.pbtxt")):
        pattern = r'(key: "model_version" value: { string_value: ")[^"]*(")'
        text = re.sub(pattern, rf"\g<1>{model_version}\g<2>", path.read_text())
        named = re.sub(r'^name: "[^"]*"', f'name: "{out.parent.name}"', text, flags=re.MULTILINE)
        (configs / path.name).write_text(named)
        written.append(configs / path.name)
    return written
