"""Where things are: everything hangs below one checkout."""

import importlib.util
import os
import sys
from pathlib import Path

INSTALLED = Path(__file__).resolve().parent.parent  # the checkout whose package overnight is running


def root() -> Path:
    """The checkout: `$OVERNIGHT_ROOT`, else the folder that holds the package."""
    return Path(os.environ.get("OVERNIGHT_ROOT") or INSTALLED)


def state() -> Path:
    """Folder `.overnight` of the checkout; made when missing."""
    folder = root() / ".overnight"
    folder.mkdir(exist_ok=True)
    return folder


def services() -> Path:
    return state() / "services"


def log_file(service: str) -> Path:
    return state() / "logs" / f"{service}.log"


def steps() -> Path:
    return state() / "steps"


def datasets() -> Path:
    return root() / "datasets"


def weights() -> Path:
    return root() / "weights"


def configs() -> Path:
    return root() / "configs"


def mlruns() -> Path:
    return root() / "mlruns"


def shown(path: Path) -> str:
    """As a person would type it from the checkout."""
    try:
        return str(path.resolve().relative_to(root().resolve()))
    except ValueError:
        return str(path)


def in_checkout(path: Path) -> Path | None:
    """Path relative to the checkout; None outside."""
    whole = path.resolve()
    places = (root().resolve(), INSTALLED)
    return next((whole.relative_to(place) for place in places if whole.is_relative_to(place)), None)


def import_from_checkout(package: str) -> None:
    """Import `flows` or `tasks` from the checkout: a package of that name on PYTHONPATH must not win.

    Modules are looked for below root(), then beside the running package overnight.
    """
    folders = [place / package for place in dict.fromkeys((root(), INSTALLED)) if (place / package).is_dir()]
    faces = [folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()]
    if package in sys.modules or not faces:
        return
    spec = importlib.util.spec_from_file_location(
        package, faces[0], submodule_search_locations=[str(folder) for folder in folders]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
