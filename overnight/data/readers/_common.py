"""What several readers need."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator

from overnight.data.archives import plain
from overnight.data.content import CleaningCounts, ImageItem
from overnight.data.images import of_array
from overnight.errors import DataError, did_you_mean, file_error
from overnight.paths import shown

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")  # that texts have; what is in another would be left out unseen
IMAGE_ENDINGS = frozenset(
    {
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".jpf", ".avif",
        ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".tga", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm",
    }
)  # fmt: skip
UNREAD_ENDINGS = frozenset(  # images in formats that Pillow does not read
    {".heic", ".heif", ".svg", ".psd", ".xcf", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)
# folders and files that systems leave beside the user's own, in lower case; those that start with a dot too
LEAVINGS = frozenset(
    {
        "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "lost+found", "$recycle.bin",
        "recycler", "system volume information", "found.000", "__pycache__", "thumbs.db", "ehthumbs.db",
        "desktop.ini", "icon\r",
    }
)  # fmt: skip
USUAL = {  # what folders of a split are called
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
MOST_CLASSES = 100_000
SIGNATURES = {
    b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"PAR1": "parquet", b"\x93NUMPY": "npy", b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg", b"%PDF": "pdf", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstandard", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar",
    b"SQLite format 3\0": "SQLite", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "old Excel or Word",
    b"ARROW1\0": "arrow", b"Obj\x01": "avro", b"\x89HDF": "HDF5", b"{\\rtf": "rtf", b"\x80\x04\x95": "pickle",
    b"version https://git-lfs": "git-lfs pointer (the data itself was not fetched)",
}  # fmt: skip


def one_byte(delimiter: str) -> str:
    if len(delimiter.encode()) != 1 or delimiter in '"\r\n':
        raise ValueError(
            f"must be one ASCII character that is neither a quote nor a line's end, not {delimiter!r}"
        )
    return delimiter


def _once(classes: list[str]) -> list[str]:
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))}: named twice; keep one")
    return classes


Delimiter = Annotated[str, AfterValidator(one_byte)]
Classes = Annotated[list[str], AfterValidator(_once)]
Files = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


def _known_splits(splits: dict[str, Any]) -> dict[str, Any]:
    for name in splits:
        if name not in SPLITS:
            hint = did_you_mean(name, SPLITS) or ";"
            raise ValueError(f"unknown split {name!r}{hint} there are {', '.join(SPLITS)}")
    return splits


Split = TypeVar("Split")
BySplit = Annotated[dict[str, Split], AfterValidator(_known_splits)]


def present(folder: Path, name: str) -> Path:
    """Raises DataError when it is missing, empty or not readable."""
    path = folder / name
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # a name that is too long for any file
        size = None
    if size is None:
        raise file_error(
            path, "there is no such file; check the entry's options against the files of the set"
        )
    if size == 0:
        raise file_error(path, "the file is empty; get the whole file")
    if not os.access(path, os.R_OK):
        raise file_error(path, "may not be read by this user; change its permissions")
    return path


def all_matching(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of these names, as `matching` finds them. Raises DataError for one that comes twice."""
    found = [path for name in names for path in matching(folder, name)]
    for path, times in Counter(found).items():
        if times > 1:
            raise file_error(path, "the entry names it twice, so its rows would be there twice; name it once")
    return found


def matching(folder: Path, name: str) -> list[Path]:
    """The file of that name, or every file that a name with * fits, sorted. Raises DataError."""
    if "*" not in name:
        return [present(folder, name)]
    found = sorted(folder.glob(name))
    if not found:
        raise file_error(
            folder / name, "no file fits; check the entry's options against the files of the set"
        )
    return [present(folder, path.relative_to(folder).as_posix()) for path in found]


def expect(path: Path, form: str, named: Path | None = None) -> Path:
    """The path; raises DataError when its first bytes are those of another format."""
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
        tail = stream.read()
    found = next((name for start, name in SIGNATURES.items() if head.startswith(start)), form)
    if found in ("parquet", "bzip2") and b"\0" not in head:  # a column may be called so
        found = form
    if head[8:12] == b"DUCK":
        found = "DuckDB"
    if head[257:262] == b"ustar":
        found = "tar"
    if found == "zip" and b"xl/" in head + tail:
        found = "xlsx (a spreadsheet: save it as csv)"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        found = "web page"
    if found != form:
        raise file_error(
            named or path, f"expected {form}, found a {found} file; get the right file, or correct the entry"
        )
    return path


def text(path: Path) -> str:
    """In utf-8, also inside a gz or zip, without byte order mark; any line ends become one."""
    try:
        return expect(plain(path), "text", path).read_text(encoding="utf-8-sig")  # reads universal line ends
    except UnicodeDecodeError as error:
        raise file_error(
            path, f"expected text in utf-8; byte {error.start} is not; convert the file"
        ) from None


def is_whole(text: str) -> bool:
    """Whether it has no lone surrogate, which JSON can write and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines(path: Path) -> list[str]:
    return [line.strip() for line in text(path).split("\n") if line.strip()]


def is_leaving(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEAVINGS


def folders(folder: Path) -> list[Path]:
    """Those directly below it that are the user's own, sorted."""
    return sorted(d for d in folder.iterdir() if d.is_dir() and not is_leaving(d.name))


def files_below(folder: Path, cleaned: CleaningCounts | None = None) -> list[Path]:
    """At any depth, sorted; what systems leave there is passed over, and counted if it is a folder."""
    found = list[Path]()
    for place, below, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        left = [name for name in below if is_leaving(name)]
        below[:] = [name for name in below if name not in left]
        inside = os.path.realpath(place) + os.sep
        below[:] = [n for n in below if not inside.startswith(os.path.realpath(Path(place, n)) + os.sep)]
        for name in left:
            if cleaned is not None:
                cleaned.at("folder of the system's own passed over", shown(Path(place, name)))
        for path in (Path(place, name) for name in names if not is_leaving(name)):
            if path.is_file():
                found.append(path)
            elif cleaned is not None:
                cleaned.at("link to nothing, or no regular file, left out", shown(path))
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise file_error(Path(error.filename), f"cannot be read: {error.strerror}; check its permissions")


def usual_splits(folder: Path, cleaned: CleaningCounts | None = None) -> dict[str, Path]:
    """The folders in it that are called as splits usually are; none without one for train.

    What lies beside them is left out, and counted.
    """
    there = {d.name.lower(): d for d in folders(folder)} if folder.is_dir() else {}
    found = {split: next((there[n] for n in names if n in there), None) for split, names in USUAL.items()}
    homes = {split: home for split, home in found.items() if home is not None}
    if "train" not in homes:
        return {}
    for path in there.values():
        if cleaned is not None and path not in homes.values():
            cleaned.at("folder beside those of the splits left out", path.name)
    return homes


def tidy(name: str | None, what: str, cleaned: CleaningCounts) -> str:
    """A class's name without blanks around or doubled, in one Unicode form; empty when there is none."""
    found = unicodedata.normalize("NFC", " ".join((name or "").split()))
    cleaned[f"{what} with blanks or accents in another form tidied"] += bool(found) and found != name
    return found


def count_alike(classes: Iterable[str], cleaned: CleaningCounts) -> None:
    """Classes whose names differ by case, blanks, accents' form or as 1 and 1.0 are kept apart, and named."""
    seen = dict[str, str]()
    for name in classes:
        key = unicodedata.normalize("NFKC", " ".join(name.split())).casefold()
        key = re.sub(r"^(\d+)\.0+$", r"\1", key)
        if seen.setdefault(key, name) != name:
            cleaned[f"classes {seen[key]!r} and {name!r} of nearly one name kept apart"] += 1


def check_met(met: int, whole: int, where: Path, said: str, one: Sequence[str], other: Sequence[str]) -> None:
    """Raises DataError when less than half of what is meant to meet does.

    said: what meets with what, and what to do, with {met} and {whole} in it; one, other: names of both sides.
    """
    if 2 * met >= whole:
        return
    sides = " beside ".join(", ".join(map(repr, side[:3])) or "none" for side in (one, other))
    raise file_error(where, f"{said.format(met=met, whole=whole)} (there are {sides})")


def require(path: Path, columns: Iterable[str], there: Sequence[str]) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise file_error(path, f"no column {', '.join(map(repr, missing))}; the file has: {', '.join(there)}")


def numbered(top: int, where: Path) -> tuple[str, ...]:
    """Class names for labels that are numbers from 0. Raises DataError when they cannot be."""
    if top >= MOST_CLASSES:
        raise file_error(
            where, f"a label is {top}, so labels are no numbers of classes; name the classes in the entry"
        )
    return tuple(map(str, range(top + 1)))


def class_names(
    given: Sequence[str],
    labels: Iterable[int],
    where: Path,
    cleaned: CleaningCounts,
    fault: str = "a label is {}, but the entry names {} classes",
) -> tuple[str, ...]:
    """Names for labels that are numbers from 0: those given, else the numbers; -1: unlabelled.

    Raises DataError with the fault when a label has no name.
    """
    seen = set(labels)
    top = max(seen, default=-1)
    if given and top >= len(given):
        raise file_error(where, f"{fault.format(top, len(given))}; name them all")
    names = tuple(given) or numbered(top, where)
    count_empty(names, seen, cleaned)
    return names


def count_empty(classes: Sequence[str], labels: Iterable[int], cleaned: CleaningCounts) -> None:
    """Classes that no sample has are kept, so that indices stay what the entry says."""
    cleaned["empty class kept"] += len(set(range(len(classes))) - set(labels))


def image_items(stem: str, images: "np.ndarray", labels: "np.ndarray") -> list[ImageItem]:
    """images: bytes (N, H, W) or (N, H, W, 3); labels: (N,)."""
    pairs = enumerate(zip(images, labels, strict=True))
    return [ImageItem(f"{stem}/{i}", of_array(im), int(label), im.tobytes) for i, (im, label) in pairs]


def cleaned_edges(edges: "np.ndarray", nodes: int, cleaned: CleaningCounts, where: str) -> "np.ndarray":
    """int64 (2, E) with the smaller node first, sorted, without loops and repeats."""
    import numpy as np

    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        odd = edges.min() if edges.min() < 0 else edges.max()
        raise DataError(f"{where}: an edge names node {odd}, but there are {nodes} nodes (0 to {nodes - 1})")
    low, high = np.minimum(edges[0], edges[1]), np.maximum(edges[0], edges[1])
    loops = low == high
    codes = low[~loops] * max(nodes, 1) + high[~loops]
    unique = np.unique(codes)
    cleaned["self loop dropped"] += int(loops.sum())
    cleaned["repeated edge dropped"] += len(codes) - len(unique)
    return np.stack([unique // max(nodes, 1), unique % max(nodes, 1)]).astype(np.int64)
