"""What several test files share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real data, with $OVERNIGHT_DATA set to it; skips where there is none."""
    places = [Path(given) for given in (os.environ.get("OVERNIGHT_DATA"), ROOT.parent / "shared" / "data") if given]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        pytest.skip("the real data are not here (neither $OVERNIGHT_DATA nor ../shared/data is a folder)")
    monkeypatch.setenv("OVERNIGHT_DATA", str(found))
    return found


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout of one's own: entries, data and state are below it."""
    root = tmp_path / "checkout"
    (root / "datasets").mkdir(parents=True)
    monkeypatch.setenv("OVERNIGHT_ROOT", str(root))
    monkeypatch.delenv("OVERNIGHT_DATA", raising=False)
    return root


@pytest.fixture
def folder(checkout: Path) -> Path:
    """Where the files of the data set called "made" belong."""
    place = checkout / "datasets" / "made"
    place.mkdir()
    return place


@pytest.fixture
def load(folder: Path) -> Callable[..., object]:
    """Load the data set "made" as `load(reader, options, kind=..., ...)` after its files were written to `folder`."""
    from overnight.dataset import Entry

    kinds = {"csv": "table", "voc": "boxes", "edge_list": "graph", "planetoid": "graph", "text": "text", "text_lines": "text"}

    def load_made(reader: str, options: dict[str, object], **more: object) -> object:
        values = {"name": "made", "kind": kinds.get(reader, "images"), "reader": reader, "options": options, **more}
        return Entry.model_validate(values).load()

    return load_made
