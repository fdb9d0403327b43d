"""What a reader hands over: the same few shapes whatever the format on disk."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Union

from overnight.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image

EXACT = 2**53  # a float holds every whole number below
TRUTH = dict.fromkeys(("true", "t", "yes", "y", "1"), True)  # what text stands for true or false
TRUTH |= dict.fromkeys(("false", "f", "no", "n", "0"), False)


class CleaningCounts(Counter[str]):
    """How often each rule for odd data was applied: {"box of zero size dropped": 2}.

    first: where a rule was first applied, where that was said.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.first: dict[str, str] = dict(getattr(counts, "first", {}))
        super().__init__(counts or {})

    def at(self, rule: str, where: str) -> None:
        self[rule] += 1
        self.first.setdefault(rule, where)

    def sentence(self, most: int = 5) -> str:
        """The rules that were applied most, for a note; empty when none was."""
        rules = [f"{rule} {count:,}" for rule, count in (+self).most_common(most)]
        more = len(+self) - len(rules)
        rules += [f"{more} more in the log"] if more else []
        return f"odd data: {', '.join(rules)}" if rules else ""

    def __pos__(self) -> "CleaningCounts":
        found = CleaningCounts(super().__pos__())
        found.first = {rule: where for rule, where in self.first.items() if rule in found}
        return found


def _no_misfit() -> DataError | None:
    return None


@dataclass(frozen=True)
class Tables:
    """rows: of tables whose number is known; bad_rows: (file, line, reason, row) of what was set aside.

    misfit: the first value that is not of its given type; asked when a query over the frames fails.
    """

    frames: Mapping[str, "pl.LazyFrame"]
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)
    rows: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, "pl.DataFrame"] = field(default_factory=dict)
    misfit: Callable[[], DataError | None] = _no_misfit


@dataclass(frozen=True)
class ImageItem:
    """`open()` decodes it in its own size and mode; raises DataError when it does not decode.

    stored: the file that it alone is in, or what returns its bytes. group: of samples that are copies or
    belong together, which stay in one split; empty: it is alone.
    """

    name: str
    open: Callable[[], "Image"]
    label: int  # index into classes; -1: unlabelled
    stored: Path | Callable[[], bytes] | None = None
    group: str = ""


@dataclass(frozen=True)
class BoxItem:
    """Boxes: float32 (n, 4) x1 y1 x2 y2 in pixels; labels: int64 (n,) indices into classes."""

    name: str
    open: Callable[[], "Image"]
    boxes: "np.ndarray"
    labels: "np.ndarray"
    stored: Path | Callable[[], bytes] | None = None  # this and the next as of ImageItem
    group: str = ""


@dataclass(frozen=True)
class Images:
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[ImageItem]]
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)


@dataclass(frozen=True)
class Boxes:
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[BoxItem]]
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)


Features = Union["np.ndarray", tuple["np.ndarray", "np.ndarray", "np.ndarray", tuple[int, int]], None]
"""Dense float32 (N, F); or CSR: data float32, indices and indptr int64, shape (N, F); or none."""


def as_float32(values: "np.ndarray", cleaned: CleaningCounts, what: str = "feature") -> "np.ndarray":
    """Numbers as float32, which hold 24 bits and up to 3.4e38; what they do not hold is counted."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        found = values.astype(np.float32)
    if np.can_cast(values.dtype, np.float32):
        return found
    finite, held = np.isfinite(values), np.isfinite(found)
    whole = held & (values == np.floor(values))
    cleaned[f"{what} beyond the range of float32 read as infinite"] += int((finite & ~held).sum())
    cleaned[f"{what} too small for float32 read as 0"] += int((held & (found == 0) & (values != 0)).sum())
    cleaned[f"whole number of a {what} rounded to 24 bits"] += int(
        (whole & (found.astype(float) != values)).sum()
    )
    return found


@dataclass(frozen=True)
class Graph:
    """edges: int64 (2, E), each undirected edge once, no self loops; labels: int64 (N,), -1 unlabelled.

    masks: bool (N,) by split, or empty; weights: float32 (E,) above 0, or None: every edge counts the same.
    ids: what the source calls each node; empty: their numbers.
    """

    edges: "np.ndarray"
    nodes: int
    features: "Features"
    labels: "np.ndarray"
    classes: tuple[str, ...]
    masks: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)
    weights: "np.ndarray | None" = None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """A class index each, or -1 where there are no classes; of two sentences each is a line."""

    splits: Mapping[str, list[tuple[str, int]]]
    classes: tuple[str, ...] = ()
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)
    sentences: int = 1


Message = tuple[str, str]  # role (system, user or assistant; text: running text without roles), content
Chat = tuple[Message, ...]


@dataclass(frozen=True)
class Chats:
    """Conversations, each with a user's message and an answer at its end; or running texts."""

    splits: Mapping[str, list[Chat]]
    classes: tuple[str, ...] = ()  # none
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)


@dataclass(frozen=True)
class Pairs:
    """A text and what it is to become: a sentence and its translation, an article and its summary."""

    splits: Mapping[str, list[tuple[str, str]]]
    classes: tuple[str, ...] = ()  # none
    cleaned: CleaningCounts = field(default_factory=CleaningCounts)


Content = Tables | Images | Boxes | Graph | Texts | Chats | Pairs
