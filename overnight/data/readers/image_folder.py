"""Images in folders named after their class: split/class/file, or class/file without splits."""

import json
import os
import re
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
from overnight.errors import DataError, file_error
from overnight.paths import shown

PICTURES = ("images", "image", "imgs", "img", "jpegimages", "photos")
ANNOTATIONS = (
    "labels",
    "label",
    "annotations",
    "annotation",
    "annots",
    "xml",
    "xmls",
    "masks",
    "bboxes",
    "boxes",
)
CONVERT = (
    "which no reader reads: convert it to PASCAL VOC (an xml for each image), kind: boxes and reader: voc"
)
FORMS = {  # by the ending of the annotations
    ".xml": "the layout of PASCAL VOC: boxes and no classes of images; set kind: boxes and reader: voc",
    ".txt": f"the layout of YOLO (a line of numbers for each box), {CONVERT}",
    ".json": f"a layout of boxes in json, such as COCO, {CONVERT}",
    "": "the layout of images with annotations of their own, not of folders named after classes",
}
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
    cleaned = CleaningCounts()
    homes = _homes(folder, options, cleaned)
    images = {home: _images(home, cleaned) for some in homes.values() for home in some}
    found = sorted({d.name for home in images for d in folders(home)})
    if not options.classes:
        _refuse_annotated(homes)
        _check_wrappers(folder, homes, images)
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
    if len(classes) == 1 and not options.classes:
        cleaned.at("class alone, with no other to tell it from, kept", classes[0])
    seen = {item.label for items in splits.values() for item in items}
    for label in sorted(set(range(len(classes))) - seen):
        cleaned.at("empty class kept", classes[label])
    count_alike(classes, cleaned)
    return Images(classes, splits, cleaned)


def _homes(folder: Path, options: Options, cleaned: CleaningCounts) -> dict[str, list[Path]]:
    given = options.splits
    if given is None:
        usual = usual_splits(folder, cleaned)
        return {split: [home] for split, home in usual.items()} or {"train": [folder]}
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


def _refuse_annotated(homes: Mapping[str, Sequence[Path]]) -> None:
    """Raises DataError for images beside what says where things are on them: no layout of classes."""
    for home in (home for some in homes.values() for home in some):
        there = {d.name.lower(): d for d in folders(home)}
        images = next((there[name] for name in PICTURES if name in there), None)
        beside = next((there[name] for name in ANNOTATIONS if name in there), None)
        if images is None or beside is None:
            continue
        found = {file.suffix.lower() for file in files_below(beside)}
        form = next((form for ending, form in FORMS.items() if ending in found), FORMS[""])
        raise file_error(
            home,
            f"{images.name}/ beside {beside.name}/ is {form}; if these two are classes, say "
            f"`options: {{classes: [{_yaml(images.name)}, {_yaml(beside.name)}]}}`",
        )


def _check_wrappers(
    folder: Path, homes: Mapping[str, Sequence[Path]], images: Mapping[Path, Sequence[Parts]]
) -> None:
    """Raises DataError for a class's folder that holds no image but folders like splits or classes."""
    splits, first = dict[str, str](), ""
    for split, some in homes.items():
        for home in some:
            below = home.relative_to(folder).parts
            places = dict[str, set[Parts]]()
            for parts in images[home]:
                places.setdefault(parts[0], set()).add(parts[:-1])
            branches = {name: _branches(found) for name, found in places.items()}
            wrong = {name: branch for name, branch in branches.items() if branch}
            splits[split] = _yaml("/".join(below) or ".")
            if not wrong:
                continue
            name, branch = next(iter(wrong.items()))
            path = "/".join((*below, *branch))
            inside = sorted({parts[len(branch)] for parts in places[name] if len(parts) > len(branch)})
            first = first or f"{path}: it holds no image of its own but folders ({', '.join(inside[:4])})"
            splits |= _inside(split, path, inside, [_yaml("/".join((*below, n))) for n in sorted(wrong)])
    if first:
        line = ", ".join(f"{split}: {path}" for split, path in splits.items())
        raise DataError(
            f"{shown(folder)}/{first}, so it is no class; write "
            f"`options: {{splits: {{{line}}}}}` in the entry, or "
            "list the classes as `options: {classes: [...]}`"
        )


def _branches(places: set[Parts]) -> Parts:
    """The folder where several branch off, or one that is called like a split; empty: it is a class."""
    common = Path(os.path.commonpath([Path(*parts) for parts in places])).parts
    called = {name for names in USUAL.values() for name in names}
    for depth, name in enumerate(common):
        if depth and name.lower() in called:
            return common[:depth]
    return () if common in places else common


def _inside(split: str, below: str, inside: Sequence[str], wrong: Sequence[str]) -> dict[str, str]:
    """What the entry should say in place of this split: those found below, or the folder itself."""
    names = {name.lower(): name for name in inside}
    usual = {s: next((names[n] for n in called if n in names), None) for s, called in USUAL.items()}
    found = {s: _yaml(f"{below}/{name}") for s, name in usual.items() if name}
    return found or {split: f"[{', '.join(wrong)}]" if len(wrong) > 1 else _yaml(below)}


def _yaml(path: str) -> str:
    return path if re.fullmatch(r"[\w./-]+", path) else json.dumps(path, ensure_ascii=False)


def _items(home: Path, paths: Sequence[Parts], classes: tuple[str, ...]) -> list[ImageItem]:
    index = {name: i for i, name in enumerate(classes)}
    known = [parts for parts in paths if parts[0] in index]
    known.sort(key=lambda parts: (index[parts[0]], parts))
    files = [home.joinpath(*parts) for parts in known]
    return [
        ImageItem("/".join(parts), opener(file), index[parts[0]], file)
        for parts, file in zip(known, files, strict=True)
    ]
