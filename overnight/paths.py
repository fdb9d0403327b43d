"""Where things are: everything hangs below one checkout."""

import os
from pathlib import Path


def root() -> Path:
    """The checkout: `$OVERNIGHT_ROOT`, else the folder that holds the package."""
    return Path(os.environ.get("OVERNIGHT_ROOT") or Path(__file__).resolve().parent.parent)


def state() -> Path:
    """Services, step folders and the virtual card's ledger; made when missing."""
    folder = root() / ".overnight"
    folder.mkdir(exist_ok=True)
    return folder


def steps() -> Path:
    """One folder for each step that ran."""
    return state() / "steps"


def datasets() -> Path:
    """The entries (yaml), with the bytes of downloaded sets beside them."""
    return root() / "datasets"


def configs() -> Path:
    """The experiments."""
    return root() / "configs"


def mlruns() -> Path:
    """MLflow's database and artifacts."""
    return root() / "mlruns"


def shown(path: Path) -> str:
    """The path as a person would type it from the checkout."""
    try:
        return str(path.resolve().relative_to(root().resolve()))
    except ValueError:
        return str(path)
