"""What a run did, step by step: `night.json` in the folder of its own run.

The report reads these files alone. One is written every few seconds while the run lasts, and with the card's
timeline at its end.
"""

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ConfigDict

from overnight import paths
from overnight.config import Values
from overnight.errors import BadInput, did_you_mean
from overnight.files import atomic_write
from overnight.gpu import timeline
from overnight.gpu.card import Card
from overnight.memory.usage import Usage
from overnight.processes import Identity

FILE = "night.json"
MOMENTS = 480  # of a timeline that are kept: the maxima between each and the one before
Ending = Literal["running", "done", "unchanged", "failed", "does not fit", "stopped", "not run"]


class _Part(Values):
    model_config = ConfigDict(extra="ignore")  # files of later versions can be read


class Failure(_Part):
    """Why a step failed: its class, lines that show it, and one thing to do."""

    kind: str
    evidence: tuple[str, ...] = ()
    fix: str = ""


class Classified(Protocol):
    """What is found of a failure."""

    @property
    def kind(self) -> str: ...
    @property
    def evidence(self) -> Sequence[str]: ...
    @property
    def fix(self) -> str: ...


class Earlier(Protocol):
    """The remembered result that an unchanged step has. at: unix time; run_s: of its body."""

    @property
    def run_id(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def run_s(self) -> float: ...


class StepRecord(_Part):
    """One step of the run; times are unix times, None before they are known."""

    label: str
    step: str  # module:function
    gpu: bool = False
    state: str = "pending"
    reason: str = ""
    began: float | None = None
    ended: float | None = None
    wait_s: float = 0.0  # for the card
    run_s: float = 0.0  # of its body
    asked_mib: int = 0
    lease_mib: int = 0
    overhead_mib: int = 0  # of the lease, for the CUDA context
    predicted_mib: float | None = None  # of its allocator, as the peak
    peak_mib: float | None = None
    prediction_error: float | None = None  # (measured - predicted) / predicted, where the two can be compared
    other_processes_peak_mib: float | None = None
    out_of_memory: bool = False  # met, survived or not
    asked_micro_batch: int | None = None
    micro_batch: int | None = None
    scores: dict[str, float | None] = {}  # None: not a number
    run_id: str = ""
    link: str = ""
    key: str = ""
    folder: str = ""  # of its last attempt
    since: str = ""  # id of the run that it is unchanged since
    since_link: str = ""
    since_at: float | None = None
    saved_s: float = 0.0  # what that run took
    failure: Failure | None = None
    changed: tuple[str, ...] = ()  # parts of its key that made it run again
    promotion: dict[str, Any] | None = None
    forecast_s: float | None = None  # how long it was expected to run


class CardRecord(_Part):
    name: str
    total_mib: int
    budget_mib: int
    virtual: bool = False


class Moment(_Part):
    """The card from `begin` to `at` (unix times): each amount in MiB is the maximum meanwhile."""

    begin: float
    at: float
    leased: int
    used: int
    other: int  # of programs without a lease


class NightRecord(_Part):
    experiment: str
    config: str
    flow: str = ""
    started: float
    seen: float = 0.0  # when this was written
    ended: float | None = None
    outcome: Ending = "running"
    message: str = ""
    link: str = ""
    prefect: str = ""
    commit: str = ""
    process: dict[str, str] = {}  # tags of its Identity
    card: CardRecord | None = None
    steps: tuple[StepRecord, ...] = ()
    timeline: tuple[Moment, ...] = ()
    other_programs: tuple[str, ...] = ()  # names of those that used the card
    energy_wh: float | None = None  # of the whole card; None: not measured
    price_per_kwh: float | None = None
    expected_end: float | None = None  # as it was forecast at the start
    left_out: tuple[str, ...] = ()  # steps that were not begun, since the time was up

    @property
    def alive(self) -> bool:
        """Whether the process that runs it is there."""
        identity = Identity.from_tags(self.process)
        return self.outcome == "running" and identity is not None and identity.alive()

    @property
    def killed(self) -> bool:
        """Whether it ended without a word: a kill, or a power cut."""
        return self.outcome == "running" and not self.alive

    def write(self, path: Path) -> None:
        """Raises OSError."""
        atomic_write(path, self.model_dump_json(exclude_defaults=True))


def memory(used: Usage | None) -> dict[str, Any]:
    """What a step's record has of its usage."""
    if used is None:
        return {}
    shared = StepRecord.model_fields.keys() & Usage.model_fields.keys()
    return {**{name: getattr(used, name) for name in shared}, "prediction_error": used.prediction_error}


def unchanged(since: Earlier | None) -> dict[str, Any]:
    """What the record of a skipped step has of the remembered result."""
    if since is None:
        return {}
    return {
        "since": since.run_id,
        "since_link": since.link,
        "since_at": since.at,
        "saved_s": since.run_s,
    }


def failure(found: Classified | None) -> Failure | None:
    if found is None:
        return None
    return Failure(kind=found.kind, evidence=tuple(found.evidence), fix=found.fix)


def finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def of_card(card: Card) -> CardRecord:
    return CardRecord(
        name=card.name, total_mib=card.total_mib, budget_mib=card.budget_mib, virtual=card.virtual
    )


def moments(points: Sequence[timeline.Point], most: int = MOMENTS) -> tuple[Moment, ...]:
    """The points of all holders in order, at most so many moments."""
    if not points:
        return ()
    began = points[0].at
    width = max((points[-1].at - began) / most, 1e-9)
    groups = dict[int, list[timeline.Point]]()
    for point in points:
        groups.setdefault(min(int((point.at - began) / width), most - 1), []).append(point)
    return tuple(
        Moment(
            begin=group[0].at,
            at=group[-1].at,
            leased=max(p.leased_mib for p in group),
            used=max(p.used_mib for p in group),
            other=max(p.other_processes_mib for p in group),
        )
        for group in groups.values()
    )


def of_timeline(card: Card, since: float) -> dict[str, Any]:
    """The fields of a night that the card's timeline says."""
    points = timeline.read(card, since)
    names = dict.fromkeys(name for point in points for name in point.other_processes)
    return {"timeline": moments(points), "other_programs": tuple(names)[:10]}


def reports() -> Path:
    """Where reports lie, each with a copy of its record, which stays when the steps' folders are removed."""
    return paths.state() / "reports"


def read(path: Path) -> NightRecord | None:
    """None where the file is missing, or no record that can be read."""
    with suppress(OSError, ValueError):
        return NightRecord.model_validate_json(path.read_bytes())
    return None


def nights(experiment: str = "") -> Iterator[tuple[str, NightRecord]]:
    """(name of its folder, record) of every run of that experiment, or of all, the newest first."""
    like = f"*-{glob.escape(experiment.replace('/', '-'))}-run-*" if experiment else "*"
    files = {path.stem: path for path in reports().glob(f"{like}.json")}
    files |= {path.parent.name: path for path in paths.steps().glob(f"{like}/{FILE}")}
    for name in sorted(files, reverse=True):
        found = read(files[name])
        if found is not None and experiment in ("", found.experiment):
            yield name, found


def find(wanted: str = "") -> tuple[str, NightRecord]:
    """The newest night; or the newest run of an experiment, of a day (2026-11-30), or of a folder's name.

    Raises BadInput when there is none.
    """
    found = list(nights())
    day = wanted.replace("-", "") if wanted[:4].isdecimal() else wanted
    matching = [
        (name, night)
        for name, night in found
        if wanted == night.experiment or (wanted and name.startswith((day, wanted)))
    ]
    if not wanted:
        matching = [one for one in found if one[1].flow == "nightly"] or found
    if not matching:
        names = sorted({night.experiment for _name, night in found})
        hint = did_you_mean(wanted, names) or f"; there are {', '.join(names)}"
        raise BadInput(
            f"no run is called {wanted!r}{hint}" if found else "there is no run yet: run one first"
        )
    return matching[0]
