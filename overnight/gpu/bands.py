"""Predictions, and those that were made before: a trace takes seconds, and nothing of it changes from night to night.

They lie beside what was learned of a step, as empty files: band-<version of overnight.fit>-<micro-batch>-<low>-<high> in MiB, or
band-<version>-<micro-batch>-unknown.
"""

import hashlib
import importlib
import math
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from overnight.gpu import learned
from overnight.gpu.device import Card

Band = tuple[float, float]
Predict = Callable[[Any, int, Card], "Band | None"]  # (recipe, micro-batch, card) -> (low, high) MiB of the allocator, without the context


def predictor(folder: Path) -> Predict | None:
    """The prediction of overnight.fit, where there is one, remembered in a step's folder."""
    try:
        fit = importlib.import_module("overnight.fit.prediction")  # in the package itself, `predict` may be the module or the function
    except ImportError:
        return None

    def predict(recipe: Any, micro_batch: int, card: Card) -> Band | None:
        found = fit.predict(recipe, micro_batch, "cpu" if card.virtual else "cuda", constants=fit.Constants(context_mib=0))
        return None if found.unknown else (found.low_mib, found.high_mib)

    return remembered(predict, folder, _version(Path(str(fit.__file__)).parent))


def remembered(predict: Predict, folder: Path, version: str) -> Predict:
    """The same, asked once for each micro-batch."""

    def known(recipe: Any, micro_batch: int, card: Card) -> Band | None:
        found = _read(folder, f"band-{version}-{micro_batch}-")
        if found is not None:
            return found or None
        band = predict(recipe, micro_batch, card)
        _keep(folder, version, f"{micro_batch}-{f'{math.floor(band[0])}-{math.ceil(band[1])}' if band else 'unknown'}")
        return band

    return known


def _read(folder: Path, begin: str) -> Band | tuple[()] | None:
    """What was kept; () for unknown, None for nothing."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name == f"{begin}unknown":
                return ()
            if found := re.fullmatch(rf"{begin}([0-9]{{1,9}})-([0-9]{{1,9}})", path.name):
                return float(found[1]), float(found[2])
    return None


def _keep(folder: Path, version: str, name: str) -> None:
    """Note it, without those that other versions made."""
    with suppress(OSError):
        learned.open_folder(folder)
        for old in folder.glob("band-*"):
            if not old.name.startswith(f"band-{version}-"):
                old.unlink(missing_ok=True)
        (folder / f"band-{version}-{name}").touch()


@cache
def _version(folder: Path) -> str:
    """Digest of the code that predicts, and of the loop that it traces."""
    files = sorted([*folder.rglob("*.py"), *folder.parent.glob("training.py"), *(folder.parent / "loop").glob("*.py")])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:8]
