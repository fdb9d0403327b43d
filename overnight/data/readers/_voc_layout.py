"""Images with an xml each: in PASCAL VOC's folders, beside one another, or in a folder for each split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import model_validator

from overnight.config import Values
from overnight.data.content import CleaningCounts
from overnight.data.readers._common import (
    IMAGE_ENDINGS,
    USUAL,
    Files,
    check_met,
    files_below,
    folders,
    lines,
    present,
    usual_splits,
)
from overnight.errors import file_error

IMAGES, ANNOTATIONS = ("jpegimages", "images"), ("annotations", "annotation", "xml", "xmls", "labels")


class Layout(Values):
    # folders; JPEGImages/ or images/ where there is one, else the files of the whole folder, when left out
    images: Files = []
    annotations: Files = []  # one for each of images, or one for all; Annotations/, else beside the images
    # lists of names, or folders, by split; when left out ImageSets/Main/*.txt, else folders train, val, test
    splits: dict[str, Files] = {}

    @model_validator(mode="after")
    def _one_for_each(self) -> Self:
        if len(self.annotations) > 1 and len(self.annotations) != len(self.images):
            raise ValueError(
                "give one folder of annotations for each of images, in their order, or one for all"
            )
        return self


@dataclass(frozen=True)
class Pair:
    image: Path
    xml: Path | None


def pairs_by_split(folder: Path, options: Layout, cleaned: CleaningCounts) -> dict[str, list[Pair]]:
    """Images and their annotations by split, sorted by name, so that no layout decides their order."""
    sources = options.splits or _lists(folder, cleaned) or _folders_of_splits(folder, options, cleaned)
    names = None
    found = dict[str, list[Pair]]()
    for split, some in (sources or {"train": [""]}).items():
        found[split] = []
        for source in some:
            place = folder / source
            if place.is_dir():
                found[split] += _pairs(place, folder, options, cleaned).values()
                continue
            if names is None:
                names = _Names(_pairs(folder, folder, options, cleaned))
            found[split] += names.of(present(folder, source), cleaned)
        found[split].sort(key=lambda pair: (pair.image.name, str(pair.image)))
    if not any(found.values()):
        raise file_error(
            folder, "there is no image; expected the folders of PASCAL VOC, or images with an xml beside each"
        )
    return found


def _lists(folder: Path, cleaned: CleaningCounts) -> dict[str, list[str]]:
    """Lists called as splits usually are, in whatever case, in the first place that has some.

    Of VOC's folders of lists the others are counted, where there is none of those.
    """
    for place in (folder / "ImageSets" / "Main", folder / "ImageSets", folder):
        files = {path.stem.lower(): path for path in place.glob("*.[tT][xX][tT]")}
        there = {
            split: [files[name].relative_to(folder).as_posix() for name in names if name in files][:1]
            for split, names in {**USUAL, "trainval": ("trainval",)}.items()
        }
        found = {split: names for split, names in there.items() if names}
        both = found.pop("trainval", None)
        if both and not {"train", "val"} & set(found):
            found["train"] = both
        if found:
            return found
        for path in sorted(files.values()) if place != folder else ():
            cleaned.at("list that is not called like a split left out", path.name)
    return {}


def _folders_of_splits(folder: Path, options: Layout, cleaned: CleaningCounts) -> dict[str, list[str]]:
    """Folders called train, val and test, in the set's own or in that of its images."""
    for place in (folder, *(images for images, _ in _homes(folder, folder, options))):
        homes = usual_splits(place, cleaned)
        if homes:
            return {split: [home.relative_to(folder).as_posix()] for split, home in homes.items()}
    return {}


def _homes(place: Path, folder: Path, options: Layout) -> list[tuple[Path, Path]]:
    """Folders of images, each with that of its annotations, which may be the same one."""
    images = [place / name for name in options.images] or [_named(place, IMAGES) or place]
    annotations = [place / name for name in options.annotations]
    for path in (*images, *annotations):
        if not path.is_dir():
            raise file_error(path, "there is no such folder; check the entry's images and annotations")
    if not annotations:
        annotations = [_named(place, ANNOTATIONS) or _mirrored(path, folder) or path for path in images]
    many = annotations * len(images) if len(annotations) == 1 else annotations
    return list(zip(images, many, strict=True))


def _named(place: Path, names: Iterable[str]) -> Path | None:
    there = {path.name.lower(): path for path in folders(place)}
    return next((there[name] for name in names if name in there), None)


def _mirrored(images: Path, folder: Path) -> Path | None:
    """annotations/train for images/train."""
    parts = images.relative_to(folder).parts
    annotations = _named(folder, ANNOTATIONS)
    if not parts or parts[0].lower() not in IMAGES or annotations is None:
        return None
    path = annotations.joinpath(*parts[1:])
    return path if path.is_dir() else annotations


def _pairs(place: Path, folder: Path, options: Layout, cleaned: CleaningCounts) -> dict[str, Pair]:
    """Each image with its annotation, by its path without ending.

    Raises DataError when most annotations find no image.
    """
    found, lost, count = dict[str, Pair](), list[Path](), 0
    for images, annotations in _homes(place, folder, options):
        pictures = _by_stem(images, IMAGE_ENDINGS, cleaned)
        xmls = _by_stem(annotations, {".xml"}, cleaned if annotations != images else CleaningCounts())
        _match_case(pictures, xmls, cleaned)
        found |= {str(images / stem): Pair(path, xmls.get(stem)) for stem, path in pictures.items()}
        lost += [path for stem, path in xmls.items() if stem not in pictures]
        count += len(xmls)
    for path in lost:
        cleaned.at("annotation without its image left out", path.name)
    check_met(
        count - len(lost),
        count,
        place,
        "{met} of {whole} annotations have an image of their name; correct images and annotations",
        [pair.image.name for pair in found.values()],
        [path.name for path in lost],
    )
    return found


def _match_case(pictures: dict[str, Path], xmls: dict[str, Path], cleaned: CleaningCounts) -> None:
    """Let an annotation without an image of its name have that of the same name in another case."""
    alone = {stem.casefold(): stem for stem in pictures if stem not in xmls}
    for stem in [stem for stem in xmls if stem not in pictures and stem.casefold() in alone]:
        other = alone.pop(stem.casefold(), None)
        if other is not None:
            cleaned.at("annotation given the image of its name in another case", xmls[stem].name)
            xmls[other] = xmls.pop(stem)


def _by_stem(folder: Path, endings: Iterable[str], cleaned: CleaningCounts) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_below(folder, cleaned):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() in endings and found.setdefault(stem, path) != path:
            cleaned.at("second image of the same name left out", path.name)
    return found


class _Names:
    """Images as lists name them: with or without a path and an ending, names with blanks too."""

    def __init__(self, pairs: dict[str, Pair]) -> None:
        self.pairs = pairs
        self.keys = dict[str, set[str]]()
        for key, pair in pairs.items():
            parts = Path(key).parts
            for start in range(len(parts)):
                self.keys.setdefault("/".join(parts[start:]), set()).add(key)
            self.keys.setdefault(pair.image.name, set()).add(key)

    def of(self, path: Path, cleaned: CleaningCounts) -> list[Pair]:
        """Those that a list names, each once. Raises DataError when it names mostly others."""
        listed = lines(path)
        found = [self._key(line, path) for line in listed]
        lost = [line for line, key in zip(listed, found, strict=True) if key is None]
        for line in lost:
            cleaned.at("listed image that is not there left out", f"{path.name}: {line}")
        said = "there is no such image for {lost} of {whole} names in it; correct the list, or images"
        check_met(
            len(listed) - len(lost),
            len(listed),
            path,
            said.replace("{lost}", str(len(lost))),
            lost,
            [pair.image.name for pair in self.pairs.values()],
        )
        keys = [key for key in found if key is not None]
        cleaned["image listed twice kept once"] += len(keys) - len(set(keys))
        return [self.pairs[key] for key in dict.fromkeys(keys)]

    def _key(self, line: str, path: Path) -> str | None:
        """The whole line, without a number behind it (1: the class is there), or its first word."""
        words = line.split()
        forms = [
            line,
            line.removesuffix(words[-1]).strip() if words[-1] in ("-1", "0", "1") else line,
            words[0],
        ]
        for form in dict.fromkeys(forms):
            name = form.strip("\"'").replace("\\", "/").removeprefix("./")
            for known in (name, _without_ending(name), *_last(name)):
                keys = self.keys.get(known, set())
                if len(keys) > 1:
                    raise file_error(path, f"several images are called {line!r}; write their folders too")
                if keys:
                    return next(iter(keys))
        return None


def _without_ending(name: str) -> str:
    head, dot, ending = name.rpartition(".")
    return head if dot and f".{ending.lower()}" in {*IMAGE_ENDINGS, ".xml"} else name


def _last(name: str) -> tuple[str, str]:
    last = name.rpartition("/")[2]
    return last, _without_ending(last)
