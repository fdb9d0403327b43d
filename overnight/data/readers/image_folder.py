"""Images in folders named after their class: split/class/file, or class/file without splits."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import field_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.images import opener
from overnight.data.readers._common import IMAGE_ENDINGS, Classes, count_empty
from overnight.errors import file_error

USUAL = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Options(Values):
    # folder by split; {} for none; folders called train, val and test when left out
    splits: dict[str, str] | None = None
    classes: Classes = []  # in the order of their indices; the sorted names of the folders when left out

    @field_validator("classes")
    @classmethod
    def _folders(cls, names: list[str]) -> list[str]:
        wrong = [name for name in names if name in ("", ".", "..") or "/" in name]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))}: a class must be the name of a folder")
        return names


def read(folder: Path, options: Options, _kind: str) -> Images:
    """Images at any depth below a class's folder; hidden files are passed over, others counted."""
    cleaned, homes = CleaningCounts(), _homes(folder, options)
    found = sorted({d.name for home in homes.values() for d in _folders(home)})
    classes = tuple(options.classes) or tuple(found)
    for name in sorted(set(found) - set(classes)):
        cleaned[f"folder of the unlisted class {name!r} left out"] += 1
    splits = {split: list(_items(home, classes, cleaned)) for split, home in homes.items()}
    if not any(splits.values()):
        raise file_error(
            folder,
            "there is no image in folders named after classes; expected split/class/file or class/file",
        )
    count_empty(classes, (item.label for items in splits.values() for item in items), cleaned)
    return Images(classes, splits, cleaned)


def _homes(folder: Path, options: Options) -> dict[str, Path]:
    given = options.splits
    if given is None:
        there = {d.name.lower(): d for d in _folders(folder)}
        usual = {split: next((there[n] for n in names if n in there), None) for split, names in USUAL.items()}
        homes = {split: home for split, home in usual.items() if home is not None}
        return homes if "train" in homes else {"train": folder}
    missing = [name for name in given.values() if not (folder / name).is_dir()]
    if missing:
        raise file_error(folder / missing[0], "there is no such folder; check the entry's splits")
    return {split: folder / name for split, name in given.items()} or {"train": folder}


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


def _items(home: Path, classes: tuple[str, ...], cleaned: CleaningCounts) -> Iterator[ImageItem]:
    for label, name in enumerate(classes):
        for file in sorted((home / name).rglob("*")):
            if file.name.startswith(".") or not file.is_file():
                continue
            if file.suffix.lower() in IMAGE_ENDINGS:
                yield ImageItem(file.relative_to(home).as_posix(), opener(file), label)
            else:
                cleaned["file that is no image left out"] += 1
