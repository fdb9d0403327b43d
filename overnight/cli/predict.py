"""`overnight predict NAME INPUT...`: answers of a model as a table, and pictures of them."""

import argparse
import csv
import glob
import json
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from overnight.cli.command import JSON, SWITCH, Command, print_rows
from overnight.cli.find_model import NAME
from overnight.errors import FAILURES, BadInput, one_line
from overnight.paths import shown

if TYPE_CHECKING:
    import pandas as pd

    from overnight.predictor import Interface, Predictor

SHOWN = 10  # rows in the terminal
COLUMNS = 8
TABLES = (".csv", ".tsv", ".txt", ".gz", ".parquet")
WANTED = {
    "rows": "CSV or Parquet files of a table",
    "images": "image files, folders of them, or patterns such as 'photos/*.jpg'",
    "nodes": "ids of nodes, or a CSV file with a column `node`",
    "observations": "a CSV or .npy file of observations; without any it plays an episode",
    "texts": "texts in quotes, .txt files with one a line, or CSV or Parquet files of a table",
}


def _predict(arguments: argparse.Namespace) -> None:
    from overnight import predictor
    from overnight.cli.find_model import find

    artifact = find(arguments.name)
    interface = predictor.interface(artifact)
    options = _options(interface, arguments)
    if arguments.example and arguments.inputs:
        raise BadInput("--example: is the model's own input; leave out the others")
    given = None if arguments.example else _read(interface, arguments.inputs)
    target = _target(arguments)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        frame = _example(interface, part) if arguments.example else given
        table, notes = _answers(predictor.load(artifact), frame, options, part)
        table.to_csv(part / "predictions.csv", index=False)
        if arguments.parquet:
            table.to_parquet(part / "predictions.parquet", index=False)
        target.mkdir(parents=True, exist_ok=True)
        files = [path.replace(target / path.name) for path in sorted(part.iterdir())]
    finally:
        shutil.rmtree(part, ignore_errors=True)
    (_print_json if arguments.json else _show)(interface, table, files, notes)


def _target(arguments: argparse.Namespace) -> Path:
    from overnight.paths import state

    if arguments.out:
        folder = Path(arguments.out).absolute()
        if not folder.name:
            raise BadInput(f"--out {folder}: name a folder below it")
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out {folder}: is a file; name a folder")
        return folder
    name = str(arguments.name)
    plain = "".join(c if c.isalnum() or c in "-_@." else "-" for c in name.rstrip("/").rpartition("/")[2])
    return state() / "predictions" / f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}"


def _options(interface: "Interface", arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.least_score is not None and "least_score" not in interface.options:
        raise BadInput("--least-score: is for detectors; this model gives a probability for each class")
    found = {} if arguments.least_score is None else {"least_score": float(arguments.least_score)}
    for given in arguments.option or ():
        name, _, value = given.partition("=")
        if name not in interface.options:
            known = ", ".join(f"{one}={default:g}" for one, default in interface.options.items()) or "none"
            raise BadInput(f"--option {given}: this model has no such option; it has {known}")
        try:
            found[name] = float(value)
        except ValueError:
            raise BadInput(f"--option {given}: expected {name}=NUMBER") from None
    return found


def _answers(
    model: "Predictor", frame: "pd.DataFrame | None", options: dict[str, float], folder: Path
) -> "tuple[pd.DataFrame, list[str]]":
    """The table of answers, with what they answer; and what there is to say. Pictures go to the folder."""
    if frame is None:
        return cast("Any", model).play(folder)  # type: ignore[no-any-return]
    import numpy as np

    found = model.predict(frame, **options)
    pictures = model.draw(frame, found, folder)
    notes = []
    if model.interface.kind == "images":
        names = np.array([str(one).removeprefix(f"{folder}/") for one in frame["image"]], object)
        if model.interface.outputs[0].name == "image":
            left = len(frame) - len(pictures)
            notes = [f"{left} further images are in the table alone"] if left else []
            return found.assign(image=names[found["image"].to_numpy()]), notes
        found.insert(0, "image", names)
        return found, notes
    return found if model.interface.kind == "nodes" else _beside(frame, found), notes


def _beside(given: "pd.DataFrame", found: "pd.DataFrame") -> "pd.DataFrame":
    """Both tables as one; columns of *given* that have a name of an answer become `input NAME`."""
    names = list[str]()
    for name in map(str, given):
        while name in found or name in names:
            name = f"input {name}"  # noqa: PLW2901 - until it is free
        names.append(name)
    return given.set_axis(names, axis=1).reset_index(drop=True).join(found)


def _print_json(
    interface: "Interface", table: "pd.DataFrame", files: Sequence[Path], notes: Sequence[str]
) -> None:
    rows = json.loads(table.to_json(orient="records", force_ascii=False))
    answer = {"about": interface.about, "rows": rows, "files": list(map(str, files)), "notes": notes}
    print(json.dumps(answer, ensure_ascii=False, indent=1))


def _show(interface: "Interface", table: "pd.DataFrame", files: Sequence[Path], notes: Sequence[str]) -> None:
    print(interface.about)
    answers = [column.name for column in interface.outputs if column.name in table]
    wanted = [name for name in answers if not name.startswith("probability_")]
    first = [name for name in table if name not in answers][:2] + wanted
    rows = table[first[:COLUMNS]].head(SHOWN).round(4).to_dict("records")
    print_rows([{str(name): value for name, value in row.items()} for row in rows], False)
    print(f"{len(table):,} rows" + (f", the first {SHOWN} above" if len(table) > SHOWN else ""))
    for line in (*notes, *(shown(path) for path in files)):
        print(line)


# ------------------------------------------------------------------------------------------------ reading


def _example(interface: "Interface", folder: Path) -> "pd.DataFrame":
    """The model's own example, also written into the folder in a form that the command takes."""
    import pandas as pd

    frame = pd.DataFrame(list(interface.example))
    if interface.kind != "images":
        frame.to_csv(folder / "input.csv", index=False)
        return frame
    from overnight.data.images import as_image

    for number, text in enumerate(frame["image"]):
        as_image(text, "the example").save(folder / f"input-{number}.png")
    return frame.assign(image=[str(folder / f"input-{number}.png") for number in range(len(frame))])


def _read(interface: "Interface", inputs: Sequence[str]) -> "pd.DataFrame | None":
    """None: the model plays an episode."""
    import pandas as pd

    if not inputs and interface.kind == "observations":
        return None
    if not inputs:
        raise BadInput(f"there is no input; this model takes {WANTED[interface.kind]}; try --example")
    if interface.kind == "images":
        return pd.DataFrame({"image": _images(inputs)}, dtype=object)
    if interface.kind == "nodes":
        return pd.DataFrame({"node": [name for one in inputs for name in _nodes(one)]}, dtype=object)
    if interface.kind == "texts" and len(interface.inputs) == 1:
        return _texts(inputs, interface)
    tables = [_table(Path(one), interface) for one in inputs]
    if any(set(table.columns) != set(tables[0].columns) for table in tables):
        raise BadInput(f"the files {' and '.join(inputs)} have different columns; give them one by one")
    return pd.concat(tables, ignore_index=True)


def _texts(inputs: Sequence[str], interface: "Interface") -> "pd.DataFrame":
    """The texts given themselves, the lines of .txt files, and the model's own column of tables."""
    import pandas as pd

    (column,) = (one.name for one in interface.inputs)
    found = list[Any]()
    for one in inputs:
        path = Path(one)
        if path.suffix.lower() not in TABLES:
            found.append(one)
        elif path.suffix.lower() == ".txt" and path.is_file():
            found += _lines(path)
        else:
            table = _table(path, interface)
            if column not in table:
                have = ", ".join(map(repr, table.columns))
                raise BadInput(f"{path}: has no column {column!r}; it has {have}")
            found += list(table[column])
    return pd.DataFrame({column: found}, dtype=object)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: expected text in UTF-8: {one_line(error)}") from None


def _images(inputs: Sequence[str]) -> list[str]:
    """Files as named, those of folders at any depth, and those that a pattern matches."""
    from overnight.data.readers._common import IMAGE_ENDINGS

    found = list[str]()
    for one in inputs:
        path = Path(one)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
            inside = [str(file) for file in files if not file.name.startswith(".") and file.is_file()]
            if not inside:
                raise BadInput(f"{one}: there is no image in this folder")
        else:
            inside = [str(path)] if path.is_file() else _matches(path)
            if not inside:
                raise BadInput(f"{one}: there is no such file; this model takes {WANTED['images']}")
        found += inside
    return found


def _matches(pattern: Path) -> list[str]:
    return sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - of absolute ones, too


def _nodes(one: str) -> list[Any]:
    path = Path(one)
    if path.suffix.lower() not in TABLES:
        return [one]
    if not path.is_file():
        raise BadInput(f"{one}: there is no such file; this model takes {WANTED['nodes']}")
    table = _frame(path)
    column = "node" if "node" in table else table.columns[0]
    return list(table[column])


def _table(path: Path, interface: "Interface") -> "pd.DataFrame":
    from overnight.predictor import to_frame

    if not path.is_file():
        found = "is a folder" if path.is_dir() else "there is no such file"
        raise BadInput(f"{path}: {found}; this model takes {WANTED[interface.kind]}")
    if path.suffix.lower() != ".npy":
        return _frame(path)
    import numpy as np

    try:
        return to_frame(np.load(path, allow_pickle=False), interface.inputs)
    except (*FAILURES, EOFError) as error:
        raise BadInput(f"{path}: expected an array of numpy: {one_line(error)}") from None


def _frame(path: Path) -> "pd.DataFrame":
    """A table as text, so that no value changes; a Parquet file with its own types."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(path, dtype=str, sep=_delimiter(path), encoding="utf-8-sig")
    except (*FAILURES, EOFError, zlib.error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise BadInput(f"{path}: expected a table as CSV or Parquet: {one_line(error)}") from None
    return table.rename(columns=lambda name: name.strip())


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".gz":
        return ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
    try:
        return csv.Sniffer().sniff(head, ",;\t|").delimiter
    except csv.Error:
        return ","


COMMAND: Command = (
    _predict,
    "what a trained model says of new data: a table, and pictures",
    {
        "name": NAME,
        "inputs": {
            "nargs": "*",
            "metavar": "INPUT",
            "help": "; ".join(f"{kind}: {what}" for kind, what in WANTED.items()),
        },
        "--example": {**SWITCH, "help": "answer the model's own example, and write that down as a file"},
        "--out": {"metavar": "FOLDER", "help": "where the answers go; .overnight/predictions when left out"},
        "--parquet": {**SWITCH, "help": "write the table as Parquet, too"},
        "--least-score": {"type": float, "metavar": "SCORE", "help": "of the boxes of a detector"},
        "--option": {
            "action": "append",
            "metavar": "NAME=NUMBER",
            "help": "of the model itself, such as temperature=0.5 of one that writes; may be given again",
        },
        **JSON,
    },
)
