"""What several readers need."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from overnight.content import Handled
from overnight.errors import DataError
from overnight.paths import shown

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm"})


def present(folder: Path, name: str) -> Path:
    """A file of the set; raises DataError when it is missing or empty."""
    path = folder / name
    if not path.is_file():
        raise DataError(f"{shown(path)}: there is no such file; check the entry's options against the files of the set")
    if path.stat().st_size == 0:
        raise DataError(f"{shown(path)}: the file is empty; put the whole file there")
    return path


def text(path: Path) -> str:
    """A text file in utf-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: expected text in utf-8; byte {error.start} is not; convert the file") from None


def lines(path: Path) -> list[str]:
    """The lines that are not blank, without their ends."""
    return [line.strip() for line in text(path).splitlines() if line.strip()]


def count_empty(classes: Sequence[str], labels: Iterable[int], handled: Handled) -> None:
    """Count the classes that no sample has: they are kept, so that indices stay what the entry says."""
    seen = Counter(labels)
    empty = sum(seen[i] == 0 for i in range(len(classes)))
    if empty:
        handled["empty class kept"] += empty
