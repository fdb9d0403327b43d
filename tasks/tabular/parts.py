"""Which rows a model learns from, which say when to stop, and which only score it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from overnight.errors import DataError
from tasks.tabular.hashes import mixed, row_hash
from tasks.tabular.params import FitParams
from tasks.tabular.target import Labelled

if TYPE_CHECKING:
    import polars as pl

TRAIN, VAL, TEST = 0, 1, 2
NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
OFTEN = 20  # times that a row is there on average
AGREED = 0.5  # of the variance of all targets, which copies stay below
FEW_UNITS = 100  # below, the shares are kept as they are asked; above, a row keeps its part when others come
MOST_NAMED = 3  # classes
NOTABLE = 0.05  # distance of a share from what was asked that stands in the note


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part, ascending.

    identity: uint64 (n,), equal for rows whose features are; cluster: uint64 (n,), equal for rows that are
    no independent evidence.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    identity: np.ndarray
    cluster: np.ndarray
    copied: bool  # whether rows of equal features have the same answers
    remarks: tuple[str, ...] = ()

    @property
    def seen(self) -> int:
        """Test rows whose features are those of a row of train or val."""
        known = self.identity[np.concatenate([self.train, self.val])]
        return int(np.isin(self.identity[self.test], known).sum())


def cut(params: FitParams, rows: Labelled, seed: int) -> Parts:
    """By order, groups or a column of names; else by a hash of each row, so that their order is no matter.

    Copies share a part then. Raises DataError when a part is empty or train has one class.
    """
    identity = row_hash(rows.frame.select(rows.features))
    copied = _are_copies(rows, identity)
    if params.order:
        part, cluster = _by_order(params, rows.frame[params.order])
    elif params.groups:
        _refuse_gaps(params, rows.frame)
        cluster = row_hash(rows.frame.select(params.groups))
        part = _by_hash(cluster, params.test, params.val, seed)
    elif params.parts:
        cluster = identity
        part = _by_name(params, rows.frame[params.parts], identity, seed)
    else:
        cluster = identity
        together = copied and not _are_few(rows, identity)
        part = _by_hash(identity if together else _apart(rows), params.test, params.val, seed)
    train, val, test = (np.flatnonzero(part == number) for number in (TRAIN, VAL, TEST))
    parts = Parts(train, val, test, identity, cluster, copied)
    _check(params, rows, parts)
    return replace(parts, remarks=(*_remarks(params, parts), *_lonely_classes(rows, parts)))


# ------------------------------------------------------------------------------------------------ copies


def _are_copies(rows: Labelled, identity: np.ndarray) -> bool:
    """Whether rows of equal features have targets that vary clearly less than all of them do."""
    index = np.unique(identity, return_inverse=True)[1]
    counts = np.bincount(index)
    free = len(index) - len(counts)
    if not free:
        return False
    within = total = 0.0
    is_class = rows.task == "classify"
    for column in [rows.values == k for k in range(len(rows.classes))] if is_class else [rows.values]:
        numbers = column.astype(np.float64) - column.mean()
        squares = float((numbers**2).sum())
        within += squares - float((np.bincount(index, numbers) ** 2 / counts).sum())
        total += squares
    return within / free < AGREED * total / len(index)


def _are_few(rows: Labelled, identity: np.ndarray) -> bool:
    """Whether columns of few values make so few rows that a part of these would be another question."""
    different = len(np.unique(identity))
    if different >= FEW_UNITS or different * OFTEN > len(identity):
        return False
    return max(rows.frame[name].n_unique() for name in rows.features) <= different / 2


def _apart(rows: Labelled) -> np.ndarray:
    """A hash of each row on its own: equal ones are numbered, and which has which number is no matter."""
    whole = mixed(rows.whole ^ mixed(rows.values.astype(np.float64).view(np.uint64)))
    order = np.argsort(whole, kind="stable")
    sorted_hashes = whole[order]
    first = np.searchsorted(sorted_hashes, sorted_hashes)
    number = np.empty(len(whole), np.uint64)
    number[order] = (np.arange(len(whole)) - first).astype(np.uint64)
    return mixed(whole ^ mixed(number))


# ------------------------------------------------------------------------------------------------ ways to cut


def _by_hash(units: np.ndarray, test: float, val: float, seed: int) -> np.ndarray:
    """Part (n,) of each row; rows of a unit share it."""
    names, index = np.unique(units, return_inverse=True)
    seeded = mixed(names ^ mixed(np.array([seed], np.uint64)))
    if len(names) < FEW_UNITS:
        return _of_few(np.argsort(np.argsort(seeded)), test, val)[index]
    place = seeded / 2.0**64
    part = np.where(place < test, TEST, np.where(place < test + val, VAL, TRAIN))
    return np.asarray(part[index])


def _of_few(place: np.ndarray, test: float, val: float) -> np.ndarray:
    """Part of each unit by its place; each part that is asked for gets one at least, as far as they go."""
    first = max(int(test > 0), int(np.ceil(len(place) * test - 0.5)))
    both = max(first + int(val > 0), int(np.ceil(len(place) * (test + val) - 0.5)))
    return np.where(place < first, TEST, np.where(place < both, VAL, TRAIN))


def _refuse_gaps(params: FitParams, frame: "pl.DataFrame") -> None:
    for name in params.groups:
        missing = frame[name].null_count()
        if missing:
            raise DataError(
                f"predictor: {missing} rows have no {name!r} to group them by; require it in the table"
            )


def _refuse_texts(params: FitParams, column: "pl.Series") -> None:
    """Raises DataError for texts whose alphabetical order is not that of their numbers or days."""
    import polars as pl

    if column.dtype != pl.String:
        return
    uneven = bool(column.str.contains(r"\d").all()) and column.str.len_chars().n_unique() > 1
    if uneven or column.str.contains(r"^\d{1,2}[-/.]\d{1,2}[-/.]\d").any():
        raise DataError(
            f"predictor: order {params.order!r} is text, such as {column[0]!r}, whose alphabetical order is "
            "not that of its numbers or days; give the column a type under types"
        )


def _by_order(params: FitParams, column: "pl.Series") -> tuple[np.ndarray, np.ndarray]:
    """Part of each row, and its place among the different values; equal values share a part.

    The cuts are those nearest to the shares asked.
    """
    if column.null_count():
        raise DataError(
            f"predictor: {column.null_count()} rows have no {params.order!r} to order them by; require it in "
            "the table"
        )
    _refuse_texts(params, column)
    place = column.rank("dense").to_numpy().astype(np.int64) - 1
    before = np.cumsum(np.bincount(place))[:-1] / len(place)  # share of the rows before each later value
    needed = 2 if params.val else 1
    if len(before) < needed:
        raise DataError(
            f"predictor: order {params.order!r} has {len(before) + 1} different values, too few for "
            f"{needed + 1} parts"
        )
    at_test = int(np.abs(before[needed - 1 :] - (1 - params.test)).argmin()) + needed - 1
    part = np.where(place > at_test, TEST, TRAIN)
    if params.val:
        at_val = int(np.abs(before[:at_test] - (1 - params.test - params.val)).argmin())
        part = np.where((place > at_val) & (part == TRAIN), VAL, part)
    return part, place.astype(np.uint64)


def _by_name(params: FitParams, column: "pl.Series", identity: np.ndarray, seed: int) -> np.ndarray:
    """By names in any case. Where none is a name of val, it is cut off train."""
    import polars as pl

    names = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    part = names.replace_strict(NAMES, default=None, return_dtype=pl.Int64)
    if part.null_count():
        wrong = column.filter(part.is_null())
        shown = ", ".join(repr(value) for value in wrong.unique(maintain_order=True).head(3).to_list())
        raise DataError(
            f"predictor: parts {params.parts!r} is none of train, val and test in {len(wrong)} rows ({shown})"
        )
    found = part.to_numpy().copy()
    if params.val and not (found == VAL).any():
        inside = _by_hash(identity, 0.0, params.val, seed)
        found[(found == TRAIN) & (inside == VAL)] = VAL
    return found


# ------------------------------------------------------------------------------------------------ checks


def _check(params: FitParams, rows: Labelled, parts: Parts) -> None:
    classes = len(np.unique(rows.values[parts.train])) if rows.task == "classify" else 2
    sizes = f"{len(parts.train)} rows to learn from, {len(parts.val)} of val and {len(parts.test)} of test"
    if (params.val and not len(parts.val)) or not len(parts.test) or len(parts.train) < 2:
        raise DataError(f"predictor: the split leaves {sizes}; {_advice(params, parts)}")
    if classes < 2:
        raise DataError(
            f"predictor: the split leaves {sizes}, and those to learn from have fewer than 2 classes; "
            "cut in another way"
        )


def _advice(params: FitParams, parts: Parts) -> str:
    """What to do about a part without rows."""
    if params.parts:
        return f"{params.parts!r} names none of test, or too few of train: correct it, or cut in another way"
    needed = 3 if params.val else 2
    units = len(np.unique(parts.cluster))
    if units >= needed:
        return "ask for other shares, or cut in another way"
    what = f"groups {', '.join(params.groups)}" if params.groups else "the rows"
    fewer = ", or set val: 0 to cut two" if units == 2 else ""
    return f"{what} have {units} different values, too few for {needed} parts; cut in another way{fewer}"


def _remarks(params: FitParams, parts: Parts) -> list[str]:
    """What the note says about the cut."""
    total = len(parts.identity)
    found = []
    asked = {"test": (params.test, parts.test), "val": (params.val, parts.val)}
    for name, (share, mine) in asked.items() if not params.parts else ():
        if abs(len(mine) / total - share) > NOTABLE:
            found.append(
                f"{name} has {100 * len(mine) / total:.0f} % of the rows ({100 * share:.0f} % asked), since "
                f"rows with equal {params.order or ', '.join(params.groups) or 'features'} stay together"
            )
    if parts.seen and parts.copied:
        found.append(f"{parts.seen:,} test rows have the features of a row that was learned from")
    return found


def _lonely_classes(rows: Labelled, parts: Parts) -> list[str]:
    """What the note says about classes that were never learned, or are in no score."""
    counts = {
        name: np.bincount(rows.values[mine], minlength=len(rows.classes))
        for name, mine in (("train", parts.train), ("val", parts.val), ("test", parts.test))
        if rows.classes
    }
    found = list[str]()
    for said, part in (("was never learned", "train"), ("is in no score of test", "test")):
        lacking = [i for i, count in enumerate(counts.get(part, ())) if not count]
        for number in lacking[:MOST_NAMED]:
            held = ", ".join(f"{some[number]} of {name}" for name, some in counts.items() if some[number])
            found.append(f"the class {rows.classes[number]!r} {said}: its rows are {held}")
        if len(lacking) > MOST_NAMED:
            found.append(f"{len(lacking) - MOST_NAMED} more classes: the same")
    return found
