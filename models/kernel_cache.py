"""Where numba keeps compiled kernels: a folder for each state of the sources.

numba's own cache looks only at the file of the outermost function, so that a kernel which calls
into another module keeps old machine code when only that module changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "state", "flink_jobs")
KEPT = 3  # folders of other states of the sources


def key_by_source() -> Path:
    """Point numba to the folder of these sources; call it before anything imports numba.

    A NUMBA_CACHE_DIR that is set already is left alone.

    Returns:
        The folder, below $XDG_CACHE_HOME or ~/.cache.
    """
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen)
    digest = hashlib.blake2b(digest_size=8)
    for package in PACKAGES:
        for path in sorted((SOURCES / package).rglob("*.py")):
            digest.update(str(path.relative_to(SOURCES)).encode())
            digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eddy"
    folder = base / f"kernels-{digest.hexdigest()}"
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if not folder.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            older = sorted(base.glob("kernels-*"), key=lambda p: p.stat().st_mtime)
        except OSError:  # numba finds a place of its own, or compiles at each start
            del os.environ["NUMBA_CACHE_DIR"]
            return folder
        for stale in older[: -KEPT - 1]:
            shutil.rmtree(stale, ignore_errors=True)
    return folder
