"""Images in folders named after their class: split/class/file, or class/file without splits."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import field_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts, ImageItem, Images
from overnight.data.images import opener
from overnight.data.readers._common import (
    IMAGE_ENDINGS,
    UNREAD_ENDINGS,
    USUAL,
    Classes,
    Files,
    count_alike,
    files_below,
    folders,
    usual_splits,
)
from overnight.errors import file_error

Parts = tuple[str, ...]  # of a path below the folder of a split


class Options(Values):
    # folder or folders by split; {} for none; folders called train, val and test when left out
    splits: dict[str, Files] | None = None
    # in the order of their indices; the sorted names of the folders when left out
    classes: Classes = []

    @field_validator("classes")
    @classmethod
    def _folders(cls, names: list[str]) -> list[str]:
        wrong = [name for name in names if name in ("", ".", "..") or "/" in name]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))}: a class must be the name of a folder")
        return names


def read(folder: Path, options: Options, _kind: str) -> Images:
    """Images at any depth below a class's folder; hidden files are passed over, others counted.

    Raises DataError for a folder that holds splits or classes instead of images.
    """
    cleaned, homes = CleaningCounts(), _homes(folder, options)
    images = {home: _images(home, cleaned) for some in homes.values() for home in some}
    found = sorted({d.name for home in images for d in folders(home)})
    if not options.classes:
        for home, paths in images.items():
            _check_wrappers(folder, home, paths)
    classes = tuple(options.classes) or tuple(found)
    for name in sorted(set(found) - set(classes)):
        cleaned[f"folder of the unlisted class {name!r} left out"] += 1
    splits = {
        split: [item for home in some for item in _items(home, images[home], classes)]
        for split, some in homes.items()
    }
    if not any(splits.values()):
        raise file_error(
            folder,
            "there is no image in folders named after classes; expected split/class/file or class/file",
        )
    seen = {item.label for items in splits.values() for item in items}
    for label in sorted(set(range(len(classes))) - seen):
        cleaned.at("empty class kept", classes[label])
    count_alike(classes, cleaned)
    return Images(classes, splits, cleaned)


def _homes(folder: Path, options: Options) -> dict[str, list[Path]]:
    given = options.splits
    if given is None:
        return {split: [home] for split, home in usual_splits(folder).items()} or {"train": [folder]}
    missing = [name for some in given.values() for name in some if not (folder / name).is_dir()]
    if missing:
        raise file_error(folder / missing[0], "there is no such folder; check the entry's splits")
    return {split: [folder / name for name in some] for split, some in given.items()} or {"train": [folder]}


def _images(home: Path, cleaned: CleaningCounts) -> list[Parts]:
    """Paths below it, each with the folder of a class first."""
    found = list[Parts]()
    for file in files_below(home, cleaned):
        parts, ending = file.relative_to(home).parts, file.suffix.lower()
        if ending in UNREAD_ENDINGS:
            cleaned.at(f"image of the format {ending[1:]}, which is not read, left out", file.name)
        elif ending not in IMAGE_ENDINGS:
            cleaned.at("file that is no image left out", file.name)
        elif len(parts) == 1:
            cleaned.at("image in no class's folder left out", file.name)
        else:
            found.append(parts)
    return found


def _check_wrappers(folder: Path, home: Path, paths: Sequence[Parts]) -> None:
    """Raises DataError for a class's folder that holds no image but folders like splits or classes."""
    places = dict[str, set[Parts]]()
    for parts in paths:
        places.setdefault(parts[0], set()).add(parts[:-1])
    wrappers = {name: _branches(some) for name, some in places.items()}
    wrong = {name: branch for name, branch in wrappers.items() if branch}
    if not wrong:
        return
    name, branch = next(iter(wrong.items()))
    inside = sorted({parts[len(branch)] for parts in places[name] if len(parts) > len(branch)})
    below = "/".join((*home.relative_to(folder).parts, *branch))
    raise file_error(
        folder / below,
        f"it holds no image of its own but folders ({', '.join(inside[:4])}), so it is no class; write "
        f"`options: {{splits: {_splits_line(below, inside, sorted(wrong))}}}` in the entry, or list the "
        "folders that are classes as `options: {classes: [...]}`",
    )


def _branches(places: set[Parts]) -> Parts:
    """The folder where several branch off, or one that is called like a split; empty: it is a class."""
    common = Path(os.path.commonpath([Path(*parts) for parts in places])).parts
    called = {name for names in USUAL.values() for name in names}
    for depth, name in enumerate(common):
        if depth and name.lower() in called:
            return common[:depth]
    return () if common in places else common


def _splits_line(below: str, inside: Sequence[str], wrong: Sequence[str]) -> str:
    """What the entry should say, as yaml."""
    names = {name.lower(): name for name in inside}
    usual = {
        split: next((names[name] for name in called if name in names), None)
        for split, called in USUAL.items()
    }
    splits: Mapping[str, str] = {split: f"{below}/{name}" for split, name in usual.items() if name}
    many = f"[{', '.join(wrong)}]" if len(wrong) > 1 else below
    return f"{{{', '.join(f'{k}: {v}' for k, v in (splits or {'train': many}).items())}}}"


def _items(home: Path, paths: Sequence[Parts], classes: tuple[str, ...]) -> list[ImageItem]:
    index = {name: i for i, name in enumerate(classes)}
    known = [parts for parts in paths if parts[0] in index]
    known.sort(key=lambda parts: (index[parts[0]], parts))
    files = [home.joinpath(*parts) for parts in known]
    return [
        ImageItem("/".join(parts), opener(file), index[parts[0]], file)
        for parts, file in zip(known, files, strict=True)
    ]
