"""Cases of chaos, and the runner that plays them: bounded, resumable, a table at the end, 1 when a bar is missed.

A module of this folder that has `cases() -> list[Case]` takes part; one that also has `close()` is told when its cases are over (to stop
the services that they shared). A case measures, its bars judge: `run(seed)` returns numbers by name, and must return the same schedule of
events for the same seed. Every finished case is one line of `.overnight/chaos/results.jsonl`; with --resume those are not played again.
"""

import importlib
import json
import operator
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".overnight" / "chaos" / "results.jsonl"
SIGNS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
Measured = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One thing that is done to the project, what is measured, and what must come of it.

    run: from a seed to numbers by name; bars: a condition for some of them, such as {"double_grants": "== 0", "p99_s": "<= 2"}.
    limit_s: the longest it may take; one that takes longer has missed.
    """

    name: str
    what: str
    run: Callable[[int], Measured]
    bars: Mapping[str, str]
    limit_s: int = 600


@dataclass(frozen=True)
class Outcome:
    """A case that was played: what it measured, or why it broke off."""

    name: str
    seed: int
    measured: dict[str, float] = field(default_factory=dict)
    broke: str = ""
    wall_s: float = 0.0
    commit: str = ""


@dataclass(frozen=True)
class Line:
    """One measurement of one case, as the table shows it; `met` is None where no bar was set."""

    case: str
    measure: str
    value: str
    bar: str
    met: bool | None


def judge(case: Case, outcome: Outcome) -> list[Line]:
    """Every measurement beside its bar. What has a bar and was not measured has missed it."""
    if outcome.broke:
        return [Line(case.name, "broke off", outcome.broke, "finishes", met=False)]
    lines = [_line(case.name, name, outcome.measured.get(name), bar) for name, bar in case.bars.items()]
    return lines + [
        _line(case.name, name, value, "") for name, value in outcome.measured.items() if name not in case.bars
    ]


def _line(case: str, name: str, value: float | None, bar: str) -> Line:
    shown = "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return Line(case, name, shown, bar, None if not bar else value is not None and meets(value, bar))


def meets(value: float, bar: str) -> bool:
    """Whether a value meets a bar such as "<= 2"; what is no number (nan) meets none."""
    sign, _, limit = bar.partition(" ")
    return bool(SIGNS[sign](value, float(limit)))


def play(case: Case, seed: int) -> Outcome:
    """Run a case to its end or its limit; what it raises is its outcome."""
    began = time.monotonic()
    measured, broke = dict[str, float](), ""
    try:
        with _bounded(case.limit_s):
            measured = dict(case.run(seed))
    except Exception as error:  # noqa: BLE001 - the other cases go on
        traceback.print_exc()
        broke = f"{type(error).__name__}: {error}"[:300]
    return Outcome(case.name, seed, measured, broke, round(time.monotonic() - began, 1), commit())


@contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def commit() -> str:
    """Of this checkout, with '+' when it has been changed since."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def finished(path: Path) -> dict[tuple[str, int], Outcome]:
    """What earlier starts have finished, by name and seed; a torn last line and a case that broke off count for nothing."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            outcome = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if not outcome.broke:
            found[outcome.name, outcome.seed] = outcome
    return found


def append(path: Path, outcome: Outcome) -> None:
    """One more line, on the disk before the next case begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(asdict(outcome)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def modules() -> list[Any]:
    """The modules of this folder that have cases, by name."""
    names = sorted(
        p.stem
        for p in Path(__file__).parent.glob("*.py")
        if not p.stem.startswith(("_", "test_")) and p.stem != "case"
    )
    found = [importlib.import_module(f"tests.chaos.{name}") for name in names]
    return [m for m in found if hasattr(m, "cases")]


def table(lines: Sequence[Line]) -> str:
    """For people: a column each for case, measurement, value, bar and whether it was met."""
    head = ("case", "measured", "value", "bar", "met")
    marks = {None: "", True: "yes", False: "NO"}
    rows = [head, *((line.case, line.measure, line.value, line.bar, marks[line.met]) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def play_all(
    found: Sequence[Any], seed: int, wanted: Sequence[str] = (), resume: bool = False, path: Path = RESULTS
) -> tuple[list[Line], list[Outcome]]:
    """Play the cases of *found* (modules), or those whose names hold one of *wanted*; their lines and outcomes."""
    done = finished(path) if resume else {}
    lines, outcomes = [], []
    for module in found:
        try:
            for case in [c for c in module.cases() if not wanted or any(w in c.name for w in wanted)]:
                outcome = done.get((case.name, seed))
                if outcome is None:
                    print(
                        f"{time.strftime('%H:%M:%S')} {case.name}: {case.what}", file=sys.stderr, flush=True
                    )
                    outcome = play(case, seed)
                    append(path, outcome)
                lines += judge(case, outcome)
                outcomes.append(outcome)
        finally:
            getattr(module, "close", lambda: None)()
    return lines, outcomes
