"""What a saved model offers: answers to raw input as a table, and the loss of each of its test items.

`meta.json` of a model artifact names `predictor: "module:function"`; function(folder) returns a Predictor.
"""

import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from overnight.artifact import Artifact
from overnight.config import Values
from overnight.errors import BadInput, did_you_mean, file_error
from overnight.paths import import_from_checkout

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Kind = Literal["rows", "images", "nodes", "observations", "texts"]
Type = Literal["long", "double", "string", "boolean", "datetime", "any"]
SHOWN = 12  # names in a message


class Column(Values):
    """A named column of a model's input or output.

    dimensions: of the array in each cell, 0 for a plain value; several where more than one form is taken.
    """

    name: str
    type: Type
    dimensions: tuple[int, ...] = (0,)


class Interface(Values):
    """What a model takes and gives: enough for a signature, without loading the model."""

    kind: Kind
    about: str  # of the model, in a sentence
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    options: dict[str, float] = {}  # further arguments of predict, with their defaults
    example: tuple[dict[str, Any], ...] = ()  # rows of input, as JSON


@dataclass(frozen=True)
class ItemLosses:
    """The loss of each test item, all arrays of the same length n.

    loss: float64 in [0, 1]; item: text, unique among the test items and equal for equal items in every model
    that is given the same artifacts; cluster: int64, equal for items that are no independent evidence
    (copies, rows of the same hour); group: text, the true class, by which the worst class is watched.
    """

    loss: "np.ndarray"
    item: "np.ndarray"
    cluster: "np.ndarray"
    group: "np.ndarray"


class Predictor(Protocol):
    """A model that answers. `predict` raises BadInput for input that it cannot take."""

    interface: Interface

    def predict(self, frame: "pd.DataFrame", **options: float) -> "pd.DataFrame":
        """Answers to raw input: the interface's outputs as columns."""

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """Of the test items of the artifacts that the model's step was given, in its order of arguments."""

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:
        """Pictures of the answers `found` for `frame`, written into the folder; an empty list: none."""


def interface(folder: Path) -> Interface:
    """Of the model artifact in a folder. Raises BadInput."""
    return Interface.model_validate(_meta(folder)["interface"])


def load(folder: Path) -> Predictor:
    """The model artifact in a folder, ready to predict. Raises BadInput."""
    meta = _meta(folder)
    import_from_checkout("tasks")
    found: Predictor = pkgutil.resolve_name(meta["predictor"])(folder)
    return found


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise file_error(folder, "this is no folder of a model: it has no readable meta.json") from None
    if "predictor" not in meta:
        raise file_error(folder, "this artifact is no model; name the folder that a training handed on")
    if "interface" not in meta:
        raise file_error(folder, "this model was saved by an earlier version; train it again")
    return dict(meta)


def to_frame(given: Any, columns: Sequence[Column]) -> "pd.DataFrame":
    """Input in any usual form as a table: a table, a row by name, records, or values of the only column.

    For a model with one column an array that has a dimension more than a cell holds many cells, and so does a
    list. Raises BadInput.
    """
    import numpy as np
    import pandas as pd

    names = [column.name for column in columns]
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, pd.Series) and set(names) <= set(given.index):
        return given.to_frame().T
    if isinstance(given, Mapping):
        return _of_mapping(given, columns)
    if isinstance(given, list | tuple) and given and all(isinstance(one, Mapping) for one in given):
        return pd.DataFrame([dict(one) for one in given])
    if len(columns) != 1:
        raise BadInput(
            f"the model takes a table with the columns {_shown(names)}; "
            f"this is a {type(given).__name__} without names"
        )
    if isinstance(given, pd.Series):
        given = given.to_list()
    cells = _cells(given, columns[0])
    array = np.empty(len(cells), object)
    array[:] = cells
    return pd.DataFrame({names[0]: array})


def _of_mapping(given: Mapping[str, Any], columns: Sequence[Column]) -> "pd.DataFrame":
    """Columns by name, each a list of cells or one cell."""
    import pandas as pd

    cells = {column.name: _cells(given[column.name], column) for column in columns if column.name in given}
    lengths = {len(values) for values in cells.values()}
    if len(lengths) > 1:
        raise BadInput(
            f"the columns given have {' and '.join(map(str, sorted(lengths)))} values; give each as many"
        )
    return pd.DataFrame({name: pd.Series(values) for name, values in cells.items()})


def _cells(given: Any, column: Column) -> list[Any]:
    import numpy as np

    if isinstance(given, np.ndarray):
        return [given] if given.ndim in column.dimensions else list(given)
    if not isinstance(given, list | tuple):
        return list(given) if hasattr(given, "to_list") else [given]
    if not given or not isinstance(given[0], list | tuple | int | float) or column.dimensions == (0,):
        return list(given)
    try:
        return _cells(np.asarray(given), column)
    except ValueError:  # cells of unequal sizes
        return list(given)


def check_columns(frame: "pd.DataFrame", names: Sequence[str]) -> None:
    """Raises BadInput for a column that is missing, by its name, and for one that is there twice."""
    have = [str(name) for name in frame.columns]
    problems = []
    for name in names:
        if name not in have:
            near = did_you_mean(name, have, lambda n: f"your {n!r}") or ";"
            problems.append(f"the column {name!r} is missing{near} given are {_shown(have)}")
        elif have.count(name) > 1:
            problems.append(f"the column {name!r} is there {have.count(name)} times; leave one")
    if problems:
        raise BadInput(problems)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(repr, names[:SHOWN])) or "none") + more


def class_table(classes: Sequence[str], probabilities: "np.ndarray") -> "pd.DataFrame":
    """Probabilities (n, classes) as `class`, its `probability`, and one column for each class."""
    import numpy as np
    import pandas as pd

    best = probabilities.argmax(1) if len(probabilities) else np.zeros(0, int)
    columns: dict[str, Any] = {
        "class": np.asarray(classes, object)[best],
        "probability": probabilities[np.arange(len(best)), best].astype(np.float64),
    }
    columns |= {
        column.name: probabilities[:, i].astype(np.float64)
        for i, column in enumerate(class_columns(classes)[2:])
    }
    return pd.DataFrame(columns)


def class_columns(classes: Sequence[str]) -> tuple[Column, ...]:
    """The columns of class_table."""
    return (
        Column(name="class", type="string"),
        Column(name="probability", type="double"),
        *(Column(name=f"probability_{name}", type="double") for name in classes),
    )


def class_losses(
    classes: Sequence[str],
    truth: Sequence[str],
    probabilities: "np.ndarray",
    items: Sequence[str],
    copies: Any,
) -> ItemLosses:
    """0 where the most probable class is the true one, else 1.

    copies: hashable, one for each item; items with equal ones share a cluster.
    """
    import numpy as np

    best = probabilities.argmax(1)
    loss = np.array([classes[guess] != name for guess, name in zip(best, truth, strict=True)], np.float64)
    return ItemLosses(loss, np.asarray(items, str), clusters(copies), np.asarray(truth, str))


def clusters(keys: Sequence[Any]) -> "np.ndarray":
    """int64 (n,): the number of the first item with an equal key."""
    import numpy as np

    first: dict[Any, int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], np.int64)
