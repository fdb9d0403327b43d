"""An entry for a file or folder that has none: its reader, its options and the types of its columns."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from overnight.config import Source, validate
from overnight.data import readers
from overnight.data.content import CleaningCounts
from overnight.data.readers._common import IMAGE_ENDINGS, files_below
from overnight.errors import ConfigError, DataError, file_error

CSV_ENDINGS = (".csv", ".tsv", ".txt", ".dat")
PARQUET, DATABASES = (".parquet", ".pq"), (".duckdb", ".db")
PACKED = (".gz", ".zip", ".zst")
ENCODINGS: tuple[dict[str, str], ...] = ({}, {"encoding": "utf-16"}, {"encoding": "cp1252"})
DELIMITERS: tuple[dict[str, str], ...] = ({}, *({"delimiter": mark} for mark in ";\t|"))
MOST_ROWS, HALF = 1000, 0.5  # of a table, in which names of images are looked for, and what share is many
Candidate = (
    tuple[str, str, dict[str, Any]] | tuple[str, str, dict[str, Any], str]
)  # kind, reader, options, about
MOST_TYPES = 200  # columns whose types are written down


def propose(path: Path) -> dict[str, Any]:
    """The values of an entry. Raises DataError when nothing here can be read."""
    path = path.resolve()
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    for kind, reader, options, *about in _candidates(path):
        return {"kind": kind, "reader": reader, "options": options, **({"about": about[0]} if about else {})}
    raise file_error(
        path,
        "nothing here that is known: tables (csv, Parquet, DuckDB), images in folders named after classes, "
        "annotations of PASCAL VOC, npz of a graph, or chats (jsonl); datasets/README.md has all formats",
    )


def name_of(path: Path) -> str:
    stem = path.resolve().name
    while Path(stem).suffix.lower() in (
        *CSV_ENDINGS,
        *PACKED,
        *PARQUET,
        *DATABASES,
        ".npz",
        ".jsonl",
        ".json",
    ):
        stem = Path(stem).stem
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "made"


def _candidates(path: Path) -> Iterator[Candidate]:
    folder = path if path.is_dir() else path.parent
    files = (
        [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    )
    tables = _tables(folder, files)
    if tables is not None:
        yield from _beside_pictures(path, tables)
    chats = [file.name for file in files if file.name.removesuffix(".gz").endswith((".jsonl", ".json"))]
    if chats and _reads("chats", folder, {"splits": {"train": chats}}, "chats"):
        yield "chats", "chats", {"splits": {"train": chats}}
    graphs = [file for file in files if file.suffix == ".npz"]
    if len(graphs) == 1 and _reads("planetoid", folder, {"file": graphs[0].name}, "graph"):
        yield "graph", "planetoid", {"file": graphs[0].name}
    if path.is_dir() and _images(path):
        yield from _pictures(path)
        _read("image_folder", path, {}, "images")  # which says what is in the way


def _beside_pictures(path: Path, tables: tuple[str, dict[str, Any]]) -> Iterator[Candidate]:
    """Tables, or the images that they lie beside. Raises DataError for tables of the images' labels."""
    images = _images(path) if path.is_dir() else []
    if not images:
        yield "table", *tables
        return
    files = sorted({str(given["file"]) for given in _options(tables)})
    for kind, reader, options in _pictures(path):
        if len(_read(reader, path, options, kind).classes) > 1:
            yield kind, reader, options, f"the tables beside the images are not read: {', '.join(files)}"
            return
    labels = _naming(path, tables, images)
    if labels:
        raise file_error(
            path,
            f"{labels} names {len(images)} images that lie here, but no reader takes labels of images from a "
            "table; put each image into a folder named after its class, or check the table alone: "
            f"`overnight data check {path / labels}`",
        )
    yield "table", *tables, f"{len(images)} images beside the tables are not read"


def _options(tables: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [given if isinstance(given, dict) else {"file": given} for given in tables[1]["tables"].values()]


def _naming(folder: Path, tables: tuple[str, dict[str, Any]], images: list[Path]) -> str:
    """The file of a table with a column of which at least half are names of the images; empty: none."""
    import polars as pl

    names = [
        word for image in images for word in (image.name, image.stem, image.relative_to(folder).as_posix())
    ]
    content = _read(tables[0], folder, tables[1], "table")
    for given, frame in zip(_options(tables), content.frames.values(), strict=True):
        texts = frame.select(pl.selectors.string() | pl.selectors.integer()).head(MOST_ROWS).cast(pl.String)
        shares = texts.select(pl.all().is_in(pl.lit(pl.Series(names)).implode()).mean()).collect()
        if shares.width and max(share or 0 for share in shares.row(0)) >= HALF:
            return str(given["file"])
    return ""


def _images(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() in IMAGE_ENDINGS]


def _pictures(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if next(folder.rglob("*.xml"), None) and _reads("voc", folder, {}, "boxes"):
        yield "boxes", "voc", {}
    if _reads("image_folder", folder, {}, "images"):
        yield "images", "image_folder", {}


def _reads(reader: str, folder: Path, options: dict[str, Any], kind: str) -> bool:
    try:
        _read(reader, folder, options, kind)
    except (DataError, ConfigError):
        return False
    return True


def _read(reader: str, folder: Path, options: dict[str, Any], kind: str) -> Any:
    found = readers.reader(reader)
    return found.read(folder, validate(found.Options, options, Source(folder)), kind)


# ------------------------------------------------------------------------------------------------ tables


def _tables(folder: Path, files: list[Path]) -> tuple[str, dict[str, Any]] | None:
    """(reader, options) of the files that are tables; None when there is none."""
    endings = (*CSV_ENDINGS, *PARQUET, *DATABASES)
    problems, first = list[str](), cast("DataError | None", None)
    options = dict[str, dict[str, Any]]()
    found = [file for file in files if _ending(file) in endings]
    for file in found:
        try:
            for name, given in _of_file(folder, file):
                taken = sum(
                    re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in options
                )
                options[f"{name}_{taken + 1}" if taken else name] = given
        except DataError as error:
            problems += [] if _ending(file) == ".txt" else error.problems  # it may be a note beside them
            first = first or error
    if problems:
        raise DataError(problems)
    if first is not None and not options:
        raise first
    if found and all(_ending(file) in PARQUET for file in found):
        return "parquet", {"tables": {name: given["file"] for name, given in options.items()}}
    return ("csv", {"tables": options}) if found else None


def _of_file(folder: Path, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables in it, by name. Raises DataError."""
    ending = _ending(file)
    if ending in CSV_ENDINGS:
        yield name_of(file), _csv(folder, file)
        return
    from overnight.data.readers import _typed

    if ending in PARQUET:
        _typed.parquet([file], "same", CleaningCounts())
        yield name_of(file), {"file": file.name}
        return
    for table in _typed.tables_of(file):
        yield name_of(Path(table)), {"file": file.name, "table": table}


def _ending(file: Path) -> str:
    name = file.with_suffix("") if file.suffix.lower() in PACKED else file
    return name.suffix.lower()


def _csv(folder: Path, file: Path) -> dict[str, Any]:
    """Of one file: what differs from the defaults, and its types. Raises DataError."""
    problems = list[DataError]()
    for encoding in ENCODINGS:
        found = list[tuple[dict[str, Any], dict[str, str]]]()
        for delimiter in DELIMITERS:
            given = {"file": file.name, **encoding, **delimiter}
            try:
                found.append((given, _types(folder, given)))
            except DataError as error:
                problems.append(error)
        # another delimiter that parts nothing is none
        found = [one for one in found if len(one[1]) > 1 or "delimiter" not in one[0]]
        if found:
            given, types = max(found, key=lambda one: len(one[1]))
            return _with_types(folder, given, types)
    raise problems[0]


def _with_types(folder: Path, given: dict[str, Any], types: dict[str, str]) -> dict[str, Any]:
    if "delimiter" in given:
        with_commas = _types(folder, {**given, "decimal": ","})
        if _texts(with_commas) < _texts(types):
            given, types = {**given, "decimal": ","}, with_commas
    return {**given, "types": types} if len(types) <= MOST_TYPES else given


def _types(folder: Path, given: dict[str, Any]) -> dict[str, str]:
    """By column. Raises DataError."""
    from overnight.data.readers import csv

    options = validate(csv.Options, {"tables": {"made": given}}, Source(folder))
    return csv.types(folder, options)["made"]


def _texts(types: dict[str, str]) -> int:
    return sum(kind == "text" for kind in types.values())
