"""What a model of tables takes and gives: columns by name and type, and rows as an example."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from overnight.predictor import Column, Interface, class_columns
from overnight.predictor import Type as ColumnType
from tasks.tabular.columns import Type
from tasks.tabular.params import FitParams
from tasks.tabular.target import Labelled

if TYPE_CHECKING:
    import polars as pl

EXAMPLE_ROWS = 3
NUMBER = "prediction"  # the column of a number that is predicted
TYPES: dict[Type, ColumnType] = {
    "int": "long",
    "float": "double",
    "bool": "boolean",
    "text": "string",
    "date": "string",
    "datetime": "string",
}
METHODS = {
    ("linear", "classify"): "Logistic regression",
    ("linear", "regress"): "Ridge regression",
    ("boosted", "classify"): "Boosted trees",
    ("boosted", "regress"): "Boosted trees",
}


def about_classes(classes: Sequence[str]) -> str:
    return " or ".join(classes) if len(classes) < 5 else f"{len(classes)} classes"


def of(params: FitParams, rows: Labelled, kinds: Mapping[str, Type], test: "pl.DataFrame") -> Interface:
    """The example's rows are those of test without a gap, where there are some."""
    method = METHODS[params.model, rows.task]
    unit = f" in {params.unit}" if params.unit else ""
    about = f"{method}: {params.target}{unit}"
    if rows.task == "classify":
        about = f"{method}: {about_classes(rows.classes)}, by {params.target}"
    chosen = test.select(list(kinds))
    types: dict[str, ColumnType] = {
        name: "double" if kind == "int" and chosen[name].null_count() else TYPES[kind]
        for name, kind in kinds.items()
    }
    return Interface(
        kind="rows",
        about=about,
        inputs=tuple(Column(name=name, type=kind) for name, kind in types.items()),
        outputs=class_columns(rows.classes) if rows.classes else (Column(name=NUMBER, type="double"),),
        example=tuple(_example(chosen, types)),
    )


def _example(rows: "pl.DataFrame", types: Mapping[str, ColumnType]) -> list[dict[str, Any]]:
    whole = rows.drop_nulls()
    empty: dict[ColumnType, Any] = {"double": 0.0, "long": 0, "boolean": False}
    return [
        {
            name: empty.get(types[name]) if value is None else _plain(value, types[name])
            for name, value in row.items()
        }
        for row in (whole if whole.height else rows).head(EXAMPLE_ROWS).to_dicts()
    ]


def _plain(value: Any, kind: ColumnType) -> Any:
    """As JSON has it."""
    if kind == "double":
        return float(value) if math.isfinite(value) else 0.0
    return value if kind in ("long", "boolean") else str(value)
