"""What steps were predicted to need and what they took, for their next request.

<card's folder>/history.jsonl has a line of JSON for each run, {step, family, used}, and for each prediction,
{step, version, estimate}. Lines are appended under a lock, each after a newline, so that a torn one spoils no
other; odd lines are ignored. Above LIMIT_BYTES the file is written anew with the last KEPT lines and the
largest of each step and outcome.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.config import Values
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


class _Line(Values):
    """What a step took, or what it was predicted to take. step: digest of what decides its memory."""

    step: str
    family: str = ""
    used: Usage | None = None
    version: str = ""
    estimate: MemoryEstimate | None = None

    def dump(self) -> bytes:
        return b"\n" + self.model_dump_json(exclude_defaults=True).encode()

    @property
    def sound(self) -> bool:
        """Whether each figure is a number that can be true. Raises TypeError for an empty line."""
        figures = [
            value for value in vars(self.used or self.estimate).values() if isinstance(value, int | float)
        ]
        return all(0 <= figure < LARGEST for figure in figures)

    @property
    def group(self) -> tuple[Any, ...]:
        """Lines of a group say the same of a step, with other figures."""
        if self.used is None:
            return self.step, self.estimate and self.estimate.micro_batch
        sizes = (self.used.begun_with, self.used.ended_with)
        return self.step, *sizes, *map(self.used.outcome, sizes), self.used.exclusive

    @property
    def amount(self) -> float:
        if self.used is None:
            return 0.0
        return self.used.cap_mib if self.used.hit_limit else self.used.peak_mib or 0.0


class History:
    def __init__(self, card: Card) -> None:
        self.lines = list(_read(_path(card)))

    def runs(self, step: str) -> list[Usage]:
        return [line.used for line in self.lines if line.used and line.step == step]

    def family(self, name: str) -> list[Usage]:
        """The last runs that can be compared with their prediction."""
        runs = [line.used for line in self.lines if line.used and line.family == name]
        return [run for run in runs if run.finished and run.prediction_error is not None][-FAMILY_RUNS:]

    def prediction(self, step: str, micro_batch: int) -> MemoryEstimate | None:
        """Last prediction that today's code made."""
        own = [line.estimate for line in self.lines if (line.step, line.version) == (step, version())]
        return next((one for one in reversed(own) if one and one.micro_batch == micro_batch), None)


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
    _append(card, _Line(step=step, version=version(), estimate=found))


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
        _append(card, _Line(step=step_key(step, arguments), family=family(step, params), used=used))


def _path(card: Card) -> Path:
    return card.folder / "history.jsonl"


def _read(path: Path) -> Iterator[_Line]:
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return
    for text in texts:
        with suppress(*FAILURES):
            line = _Line.model_validate_json(text)
            if line.sound:
                yield line


def _append(card: Card, line: _Line) -> None:
    """A disk that cannot be written is no error; a figure that cannot be true is left out."""
    path = _path(card)
    if not line.sound:
        return
    with suppress(OSError), hold(path.with_suffix(".lock"), "a step's history", wait=True):
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
