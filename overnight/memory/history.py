"""What steps were predicted to need and what they took, for their next request.

<card's folder>/history.jsonl has a line of JSON for each run, {step, family, used}, and for each prediction,
{step, version, estimate}. Lines are appended under a lock, each after a newline, so that a torn one spoils no
other; odd lines are ignored. Above LIMIT_BYTES the file is written anew with the last KEPT lines and the
largest of each step and outcome.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from overnight.errors import FAILURES
from overnight.files import atomic_write, source_sha256
from overnight.gpu.card import Card
from overnight.locks import hold
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.usage import Usage

if TYPE_CHECKING:
    from overnight.step import Step

LIMIT_BYTES = 1 << 20
KEPT = 5
FAMILY_RUNS = 50  # the last ones, whose errors count
LARGEST = 10**8  # MiB; a larger figure is nonsense
KINDS_OF_NET = ("arch", "recipe", "conv", "algorithm", "model")  # fields of Params that name one
_ESTIMATE = TypeAdapter(MemoryEstimate)


class _Line(NamedTuple):
    """step: digest of what decides its memory; label: the family of a run, the version of a prediction."""

    step: str
    label: str
    value: Usage | MemoryEstimate

    @classmethod
    def parse(cls, text: bytes) -> "_Line":
        found = json.loads(text)
        if "used" in found:
            return cls(found["step"], found["family"], Usage.model_validate(found["used"]))
        return cls(found["step"], found["version"], _ESTIMATE.validate_python(found["estimate"]))

    def dump(self) -> bytes:
        if isinstance(self.value, Usage):
            used = self.value.model_dump(mode="json", exclude_defaults=True)
            whole = {"step": self.step, "family": self.label, "used": used}
        else:
            whole = {"step": self.step, "version": self.label, "estimate": asdict(self.value)}
        return b"\n" + json.dumps(whole, allow_nan=False, separators=(",", ":")).encode()

    @property
    def sound(self) -> bool:
        """NaN is not."""
        figures = [value for value in vars(self.value).values() if isinstance(value, int | float)]
        return all(0 <= figure < LARGEST for figure in figures)

    @property
    def group(self) -> tuple[Any, ...]:
        """Lines of a group say the same of a step, with other figures."""
        found = self.value
        if isinstance(found, MemoryEstimate):
            return self.step, found.micro_batch
        sizes = (found.begun_with, found.ended_with)
        return self.step, *sizes, *map(found.outcome, sizes), found.exclusive

    @property
    def amount(self) -> float:
        """The cap that was filled, else the peak."""
        found = self.value
        if isinstance(found, MemoryEstimate):
            return 0.0
        return found.cap_mib if found.hit_limit else found.peak_mib or 0.0


class History:
    def __init__(self, card: Card) -> None:
        self.lines = list(_read(_path(card)))

    def runs(self, step: str) -> list[Usage]:
        """The latest last."""
        return [line.value for line in self.lines if line.step == step and isinstance(line.value, Usage)]

    def family(self, name: str) -> list[Usage]:
        """The last runs that can be compared with their prediction."""
        runs = [line.value for line in self.lines if line.label == name and isinstance(line.value, Usage)]
        return [run for run in runs if run.finished and run.prediction_error is not None][-FAMILY_RUNS:]

    def prediction(self, step: str, micro_batch: int) -> MemoryEstimate | None:
        """By today's code."""
        own = [line.value for line in self.lines if (line.step, line.label) == (step, version())]
        found = [one for one in own if isinstance(one, MemoryEstimate) and one.micro_batch == micro_batch]
        return found[-1] if found else None


def step_key(step: "Step[Any, Any]", arguments: Sequence[Any]) -> str:
    return step.memory_key(arguments)[:32]


def family(step: "Step[Any, Any]", params: Any) -> str:
    """The step and the kind of net that it trains: `train_gnn-gat`."""
    fields = (getattr(params, field, None) for field in KINDS_OF_NET)
    kind = next((value for value in fields if isinstance(value, str)), "")
    return f"{step.name}-{kind}" if kind else step.name


@cache
def version() -> str:
    """Digest of the code that predicts and of the loop that it traces."""
    folder = Path(__file__).parent
    files = sorted([*folder.rglob("*.py"), *(folder.parent / "training").glob("*.py")])
    return source_sha256(files)[:8]


def add_prediction(card: Card, step: str, found: MemoryEstimate) -> None:
    _append(card, _Line(step, version(), found))


def record_usage(
    step: "Step[Any, Any]", arguments: Sequence[Any], card: Card, used: Usage, finished: bool
) -> None:
    """Add a run that says something of the step's memory.

    One that failed below its cap, or for what other programs took beyond the card's reserve, says nothing.
    """
    own = {name: getattr(used, name) for name in Usage.model_fields}  # without the fields of a StepResult
    used = Usage.model_construct(**{**own, "finished": finished})
    if not used.cap_mib or (card.virtual and not card.count):
        return
    crowded = not card.virtual and (used.other_processes_peak_mib or 0) > card.total_mib - card.budget_mib
    if used.out_of_memory and crowded and not used.filled:
        return
    if used.outcome(used.begun_with) or used.outcome(used.ended_with) or used.uncapped:
        params = arguments[0] if arguments else None
        _append(card, _Line(step_key(step, arguments), family(step, params), used))


# ---------------------------------------------------------------------- the file


def _path(card: Card) -> Path:
    return card.folder / "history.jsonl"


def _read(path: Path) -> Iterator[_Line]:
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return
    for text in texts:
        with suppress(*FAILURES):
            line = _Line.parse(text)
            if line.sound:
                yield line


def _append(card: Card, line: _Line) -> None:
    """A disk that cannot be written is no error; a figure that cannot be true is left out."""
    path = _path(card)
    if not line.sound:
        return
    with suppress(OSError, ValueError), hold(path.with_suffix(".lock"), "a step's history", wait=True):
        if path.exists() and path.stat().st_size > LIMIT_BYTES:
            atomic_write(path, _compacted(list(_read(path))))
        with path.open("ab", buffering=0) as file:
            file.write(line.dump())


def _compacted(lines: Sequence[_Line]) -> bytes:
    """Above half of the limit, the lines of the steps that were used last."""
    groups = defaultdict[Any, list[int]](list)
    used = dict[str, int]()
    for number, line in enumerate(lines):
        groups[line.group].append(number)
        used[line.step] = number
    kept = {max(group, key=lambda n: lines[n].amount) for group in groups.values()}
    kept |= {number for group in groups.values() for number in group[-KEPT:]}
    ordered = sorted(kept, key=lambda n: (used[lines[n].step], n))
    return b"".join(lines[n].dump() for n in ordered)[-LIMIT_BYTES // 2 :]  # begins with a torn line, perhaps
