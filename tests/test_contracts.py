"""The contracts of imports in pyproject.toml against the modules that there are."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = {"models", "models.tpp"}  # packages that hold the training as well


def _modules() -> set[str]:
    """Return the dotted names of all modules under models/ but those of the training."""
    names = set()
    for path in (ROOT / "models").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    training = "models.tpp.training"
    return {n for n in names - NAMESPACES if n != training and not n.startswith(f"{training}.")}


def test_every_module_outside_the_training_must_not_import_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c.get("forbidden_modules") == ["torch"])
    listed = set(contract["source_modules"])
    modules = _modules()
    assert {"models.prior", "models.tpp.mixture", "models.baselines.value"} <= modules
    # A contract covers the descendants of what it names.
    missing = {
        name
        for name in modules
        if not any(name == one or name.startswith(f"{one}.") for one in listed)
    }
    assert not missing, f"add {sorted(missing)} to the contract on torch in pyproject.toml"
    stale = {one for one in listed if one.startswith("models.") and one not in modules}
    assert not stale, f"the contract on torch names {sorted(stale)}, which are not there"
