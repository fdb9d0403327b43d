"""What is predicted: the classes or the number of each row, and the columns that may be used for it."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from overnight.artifact import Artifact
from overnight.data.content import EXACT
from overnight.errors import DataError
from tasks.tabular.encoding import is_number
from tasks.tabular.expressions import Expressions
from tasks.tabular.hashes import file_hash
from tasks.tabular.params import MOST_CLASSES, FitParams, Task

if TYPE_CHECKING:
    import polars as pl

FEW, MANY = 10, 50  # distinct whole numbers that are classes without a word, and above which they are numbers
ANSWER, WHOLE_ROW = "\0answer", "\0row"


@dataclass(frozen=True)
class Labelled:
    """The rows that have an answer.

    values: float64 (n,) numbers, or int64 (n,) indices into classes.
    """

    frame: "pl.DataFrame"
    task: Task
    values: np.ndarray
    classes: list[str]
    numeric: list[str]
    categorical: list[str]
    rows: int  # with those that have no answer
    whole: np.ndarray  # uint64 (n,), a hash of all columns but the target's, where nothing else cuts the rows

    @property
    def features(self) -> list[str]:
        return [*self.numeric, *self.categorical]


def labelled(params: FitParams, table: Artifact) -> Labelled:
    """Raises DataError for columns that are missing or no numbers, and for a target that cannot be used."""
    import polars as pl

    frame = pl.scan_parquet(table.path / "table.parquet")
    have = frame.collect_schema()
    own = target_columns(params)
    numeric, categorical = _features(params, have, own)
    _check(params, have, own, numeric, categorical)
    wanted = list(dict.fromkeys([*numeric, *categorical, *params.columns()]))
    try:
        answer = Expressions().parse(params.target, "predictor.target", have).alias(ANSWER)
        rows = frame.select(*wanted, answer).collect(engine="streaming")
        rows = rows.with_columns(_whole_rows(params, frame, have, own))
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"predictor: target {params.target!r} does not work: {str(error).splitlines()[0]}"
        ) from None
    if rows.schema[ANSWER].is_float():
        rows = rows.with_columns(pl.col(ANSWER).fill_nan(None))
    known = rows.drop_nulls(ANSWER)
    answers = known[ANSWER]
    if not known.height or not _is_plain(answers.dtype):
        raise DataError(
            f"predictor: target {params.target!r} is {answers.dtype} with a value in {known.height} of "
            f"{rows.height} rows; it needs numbers, texts or truth values: CAST it, or look at the table"
        )
    task = params.task or _inferred(params, answers)
    _without_effect(params, task)
    values, classes = _classes(params, answers) if task == "classify" else (_numbers(params, answers), [])
    whole = known[WHOLE_ROW].to_numpy()
    kept = known.drop(ANSWER, WHOLE_ROW)
    return Labelled(kept, task, values, classes, numeric, categorical, rows.height, whole)


def _whole_rows(
    params: FitParams, frame: "pl.LazyFrame", have: "pl.Schema", own: set[str]
) -> "pl.Series | pl.Expr":
    """A hash of each row of the table, without the target; 0 where something else says how to cut."""
    import polars as pl

    if params.order or params.groups or params.parts:
        return pl.lit(0, pl.UInt64).alias(WHOLE_ROW)
    names = [name for name, dtype in have.items() if name not in own and _is_plain(dtype)]
    return pl.Series(WHOLE_ROW, file_hash(frame, names))


def target_columns(params: FitParams) -> set[str]:
    """The columns that the target's expression reads. Raises DataError."""
    import polars as pl

    try:
        return set(pl.sql_expr(params.target).meta.root_names())
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"predictor: target {params.target!r} does not work: {str(error).splitlines()[0]}"
        ) from None


def _features(params: FitParams, have: "pl.Schema", own: set[str]) -> tuple[list[str], list[str]]:
    """Names under numeric and categorical, with `all` spelled out."""
    import polars as pl

    taken = own | set(params.columns())
    left = {name: dtype for name, dtype in have.items() if name not in taken}
    numbers = [name for name, dtype in left.items() if dtype.is_numeric()]
    texts = [name for name, dtype in left.items() if dtype in (pl.String, pl.Boolean, pl.Categorical)]
    return (
        numbers if params.numeric == "all" else list(params.numeric),
        texts if params.categorical == "all" else list(params.categorical),
    )


def _check(
    params: FitParams, have: "pl.Schema", own: set[str], numeric: list[str], categorical: list[str]
) -> None:
    """Raises DataError with everything that is wrong about the columns."""
    wanted = dict.fromkeys([*numeric, *categorical, *params.columns()])
    problems = [f"no column {name!r}; the table has {', '.join(have)}" for name in wanted if name not in have]
    problems += [
        f"numeric: {c!r} is {have[c]}, not a number" for c in numeric if c in have and not is_number(have[c])
    ]
    problems += [
        f"{c!r} is {have[c]}, which is no number, text, truth value or time; CAST it in the table"
        for c in wanted
        if c in have and not _is_plain(have[c])
    ]
    times = Counter([*numeric, *categorical])
    problems += [
        f"{c!r} stands {times[c]} times under numeric and categorical" for c in times if times[c] > 1
    ]
    problems += [
        f"{c!r} is part of the target {params.target!r}: it would give the answer away; take it out of the "
        "features"
        for c in [*numeric, *categorical]
        if c in own
    ]
    if not numeric + categorical:
        problems.append("name at least one column under numeric or categorical")
    if problems:
        raise DataError([f"predictor: {problem}" for problem in problems])


def _is_plain(dtype: "pl.DataType") -> bool:
    import polars as pl

    return not (dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration))


def _inferred(params: FitParams, answers: "pl.Series") -> Task:
    """Classes, or a number; raises DataError where both would do."""
    if not answers.dtype.is_numeric():
        return "classify"
    found = answers.n_unique()
    whole = answers.dtype.is_integer() or bool((answers.cast(float) == answers.cast(float).round()).all())
    if found <= 2 or (whole and found <= FEW):
        return "classify"
    if whole and found <= MANY:
        raise DataError(
            f"predictor: target {params.target!r} has {found} different whole numbers, which may be classes "
            "or amounts: say task: classify or task: regress"
        )
    return "regress"


def _without_effect(params: FitParams, task: Task) -> None:
    given = {"class_weights": bool(params.class_weights)}
    if task == "classify":
        given = {"log_target": params.log_target, "unit": bool(params.unit)}
    for name, is_given in given.items():
        if is_given:
            raise DataError(
                f"predictor: {name} has no effect, since {params.target!r} is predicted as "
                f"{'a class' if task == 'classify' else 'a number'}; take it out, or say another task"
            )


def _classes(params: FitParams, answers: "pl.Series") -> tuple[np.ndarray, list[str]]:
    """Index of each answer, and the names of the classes: numbers in their order, and so texts of numbers."""
    import polars as pl

    texts = answers.cast(pl.String)
    if answers.dtype.is_float():
        whole = (answers == answers.floor()) & (answers.abs() < EXACT)
        digits = answers.cast(pl.Int64, strict=False).cast(pl.String)
        texts = pl.select(pl.when(whole).then(digits).otherwise(texts)).to_series()
    names = texts.unique()
    if not 2 <= len(names) <= MOST_CLASSES:
        advice = (
            "; say task: regress to predict the number"
            if len(names) > 1 and answers.dtype.is_numeric()
            else ""
        )
        raise DataError(
            f"predictor: target {params.target!r} has {len(names)} classes in {len(answers)} rows; it needs "
            f"2 to {MOST_CLASSES}{advice}"
        )
    numbers = names.cast(pl.Float64, strict=False)
    classes = names.sort().to_list()
    if not numbers.null_count():
        classes = sorted(classes, key=lambda name: (float(name), name))
    index = texts.replace_strict({c: i for i, c in enumerate(classes)}, return_dtype=pl.Int64)
    return index.to_numpy(), classes


def _numbers(params: FitParams, answers: "pl.Series") -> np.ndarray:
    """Float64 (n,), finite. Raises DataError for texts, infinities, and numbers that have no logarithm."""
    import polars as pl

    if not is_number(answers.dtype):
        raise DataError(f"predictor: target {params.target!r} is {answers.dtype}, no number; CAST it")
    values = answers.cast(pl.Float64).to_numpy()
    infinite = int((~np.isfinite(values)).sum())
    if infinite:
        raise DataError(f"predictor: target {params.target!r} is infinite in {infinite} rows; leave them out")
    if len(values) < 2 or values.min() == values.max():
        raise DataError(f"predictor: target {params.target!r} is the same in all {len(values)} rows")
    with np.errstate(over="ignore", under="ignore"):
        square = float(np.square(values.max() - values.min()))
    if not 0 < square < np.inf:
        raise DataError(
            f"predictor: target {params.target!r} goes from {values.min():g} to {values.max():g}, too far "
            "from 1 for squared errors; give it another unit"
        )
    if params.log_target and values.min() < 0:
        raise DataError(
            f"predictor: log_target needs numbers from 0 on; {params.target!r} has {values.min():g}"
        )
    return values
