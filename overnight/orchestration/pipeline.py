"""One run of a config: check it, run the flow, which submits its steps, and wait for all of them.

Prefect is behind the protocol Engine: `execute` runs inside a Prefect flow (prefect.py).
"""

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from overnight import paths
from overnight.artifact import Artifact
from overnight.best_effort import best_effort, repeating
from overnight.config import Experiment, Params, read
from overnight.errors import DoesNotFit
from overnight.gpu.card import Card
from overnight.gpu.device_usage import EnergyMeter
from overnight.night import record
from overnight.night.clean import clean_after
from overnight.night.failures import Failure
from overnight.night.results import Result
from overnight.night.settings import NightValues
from overnight.orchestration import planning, provenance, reporting, seeds
from overnight.orchestration.checks import card_for, check_data, end_time, load, tracker_for
from overnight.orchestration.launcher import Launcher, Local, Stop, stopped_by_signals
from overnight.orchestration.planning import Forecast
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import ROWS, Display, StepRow
from overnight.orchestration.terminal import scores as in_words
from overnight.step import Builder, Step, building
from overnight.tracking.client import SCORE, Tracker
from overnight.tracking.uploader import OPEN_S, Uploader

POLL_S = 2.0  # between two uploads, and two looks for a cancellation
LAST_S = 2.0  # for the threads that poll, at the end: a server may hang
CANCELLED = "cancelled in Prefect"


State = Literal["done", "unchanged", "failed", "does not fit", "stopped", "not run"]


@dataclass(frozen=True)
class Outcome:
    state: State
    message: str


@dataclass(eq=False)
class Pending:
    """A step that was submitted.

    key, uploader: of its last attempt; since: the remembered result that it is unchanged since
    changed: parts of its key that made it run again; promotion: what the gate found
    """

    label: str
    step: Step[Any, Any]
    upstream: "list[Pending]"
    row: StepRow
    seed: int = 0
    key: str = ""
    uploader: Uploader | None = None
    since: Result | None = None  # the remembered result that it has, when it was skipped
    changed: list[str] = field(default_factory=list)  # parts of its key, against its last result
    result: StepResult | None = None
    reason: str = ""  # why there is no result, or since when it is unchanged
    why: str = ""  # why it ran again
    failure: Failure | None = None  # of the last attempt
    promotion: dict[str, Any] | None = None
    future: Any = None  # of the engine
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def artifact(self) -> Artifact | None:
        """None before the end, or when nothing was returned."""
        value = self.result.value if self.result and self.result.code == 0 else None
        return Artifact.model_validate(value) if value is not None else None


class Engine(Protocol):
    """Runs the steps of a run, each in a thread, and shows them in its UI."""

    def submit(self, run: "PipelineRun", pending: Pending, arguments: list[Any]) -> None:
        """Run the step when those upstream have ended, well or not; sets `pending.ended` at the end."""

    def tags(self) -> dict[str, str]:
        """Tags that lead from MLflow to this run."""

    def show_report(self, text: str) -> None:
        """Show the night's report, as markdown; no failure of it matters."""

    def stop_reason(self) -> str:
        """CANCELLED, or why else the run is to stop; may raise when its server does not answer."""


@dataclass(eq=False)
class PipelineRun(Builder):
    """The steps of one run, and what they share; `own`: of the experiment's own run in MLflow."""

    experiment: Experiment
    card: Card
    tracker: Tracker
    own: Uploader
    display: Display
    engine: Engine
    launcher: Launcher
    seed: int = 0  # of the steps that are submitted now
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=time.time)
    energy: EnergyMeter | None = None
    forecast: Forecast = field(default_factory=Forecast)
    page: reporting.Page | None = None  # of the night's report
    pending: list[Pending] = field(default_factory=list)
    uploaders: list[Uploader] = field(default_factory=list)
    _known: dict[str, Pending] = field(default_factory=dict)

    def submit(self, step: Step[Any, Any], arguments: list[Any]) -> Pending:
        """The same step with the same arguments runs once."""
        given = [id(a) if isinstance(a, Pending) else _plain(a) for a in arguments]
        identity = f"{self.seed} {step.address} {given}"
        if identity not in self._known:
            label = self._label(step.name)
            upstream = [a for a in arguments if isinstance(a, Pending)]
            pending = Pending(label, step, upstream, self.display.add(label), seed=self.seed)
            self._known[identity] = pending
            self.pending.append(pending)
            self.engine.submit(self, pending, arguments)
        return self._known[identity]

    def _label(self, name: str) -> str:
        label = self.label(name)
        label = f"{seeds.prefix(self.seed)}{label}" if self.experiment.seeds > 1 else label
        same = sum(p.label == label or p.label.startswith(f"{label}-") for p in self.pending)
        return f"{label}-{same + 1}" if same else label

    def end(self, pending: Pending, state: State, reason: str = "") -> Outcome:
        pending.reason = reason
        self.display.change(pending.row, state, reason.partition("\n")[0].removeprefix("unchanged "))
        return Outcome(state, reason)

    def obstacle(self, pending: Pending) -> str:
        """Why a step must not start; empty when it may."""
        missing = [
            f"{p.label} {'was not run' if p.row.state == 'not run' else 'failed'}"
            for p in pending.upstream
            if p.result is None or p.result.code
        ]
        why = self.stop.reason or ", ".join(missing)
        return f"not run: {why}" if why else ""

    def wait(self) -> None:
        for pending in self.pending:
            while not pending.ended.wait(timeout=0.3):
                pass
            if pending.result is None and not pending.reason:  # its thread never started, or broke
                obstacle = self.obstacle(pending)  # Prefect starts nothing below a step that was cancelled
                refused = "its task run ended before the step did: Prefect did not answer, or refused it"
                self.end(pending, "not run" if obstacle else "failed", obstacle or refused)

    @property
    def failed(self) -> list[Pending]:
        return [p for p in self.pending if p.reason and p.row.state == "failed"]


def _plain(value: Any) -> str:
    return str(value.result_params()) if isinstance(value, Params) else str(value)


def execute(path: Path, overrides: Sequence[str], engine: Engine) -> Outcome:
    """Raises ConfigError, ServiceError before anything is started."""
    pipeline, experiment = load(path, overrides)
    card = card_for(experiment, cpu=bool(os.environ.get("OVERNIGHT_CPU")))  # `overnight run --cpu`
    check_data(experiment)
    forecast = planning.make(pipeline, experiment, card, end_time(experiment))
    tracker = tracker_for(experiment, path)
    tags = {**engine.tags(), "overnight.config": paths.shown(path), "overnight.flow": pipeline.name}
    with Display() as display:
        own = provenance.own_run(tracker, experiment, {**provenance.tags(card), **tags}, path, overrides)
        run = PipelineRun(experiment, card, tracker, own, display, engine, Local(card), forecast=forecast)
        _open(run, read(path, overrides)[1].left_out)
        # A thread each: a server that hangs stops one of them.
        uploads = repeating(partial(_upload, run), POLL_S, LAST_S)
        cancellations = repeating(partial(_check_stop, run), POLL_S, LAST_S)
        shown = repeating(partial(_save_rows, run), POLL_S, LAST_S)
        with stopped_by_signals(run.stop), uploads, cancellations, shown:
            try:
                with building(run):
                    for run.seed in seeds.seeds_of(experiment):
                        pipeline.body(experiment.model_copy(update={"seed": run.seed}))
            except BaseException as error:  # of the flow's code: the steps that it submitted are stopped
                run.stop.ask(f"the flow failed: {error}")
                run.wait()
                _end(run, "FAILED", "failed", str(error))
                reporting.announce(run)
                raise
            run.wait()
    return _close(run)


def _open(run: PipelineRun, without_effect: list[str]) -> None:
    run.energy = EnergyMeter(run.card)
    run.uploaders.append(run.own)
    run.left_out = run.forecast.left_out
    run.own.wait_until_open(run.stop, OPEN_S)
    lines = [*without_effect, *run.forecast.lines(), f"MLflow: {run.own.link()}"]
    run.display.say("\n".join(lines))


def _close(run: PipelineRun) -> Outcome:
    one_line = _one_line(run)
    scores = {
        f"{p.label}/{k.removeprefix('test/')}": v
        for p in run.pending
        for k, v in p.row.scores.items()
        if k.startswith("test/")
    }
    varied = seeds.spreads(scores)
    scores = seeds.as_metrics(varied) | scores
    outcome = Outcome("done", one_line)
    if run.stop():
        outcome = Outcome("stopped", run.stop.reason)
    elif run.failed:
        codes = {p.result.code if p.result is not None else None for p in run.failed}
        outcome = Outcome("does not fit" if codes == {DoesNotFit.child_code} else "failed", one_line)
    failures = [line for p in run.failed if p.failure for line in p.failure.lines(p.label, p.reason)]
    if not run.stop():  # the reason of a stop is compared (prefect._by_deployment)
        outcome = replace(outcome, message="\n".join([outcome.message, *failures]))
    at = time.time()
    run.own.log({"event": "note", "text": _description(run, [one_line, *failures], scores), "at": at})
    _log_scores(run, scores, at)
    _end(run, {"stopped": "KILLED", "done": "FINISHED"}.get(outcome.state, "FAILED"), outcome.state, one_line)
    run.display.console.print(run.display.summary())
    run.display.say("\n".join(["", one_line, *seeds.in_words(varied), *failures, run.own.link()]))
    reporting.announce(run)
    if isinstance(run.experiment, NightValues):
        clean_after(run.experiment.keep, run.tracker, run.display.say)
    return outcome


def _log_scores(run: PipelineRun, scores: dict[str, float], at: float) -> None:
    """With the first of them in the run's name, and as the metric that the list of runs shows."""
    for label, value in [*scores.items()][:1]:
        step, _, score = label.rpartition("/")
        # The list cuts a name after about 20 characters.
        name = f"{in_words({score: value}, 1)}, {step}, {run.own.record.label}"
        run.own.log({"event": "tags", "values": {"mlflow.runName": name}, "at": at})
        run.own.log({"event": "metrics", "values": {SCORE: value}, "step": 0, "at": at})
    run.own.log({"event": "metrics", "values": scores, "step": 0, "at": at})


def _end(run: PipelineRun, status: str, state: State, message: str) -> None:
    """End the run in MLflow (status) and in its files (state)."""
    reporting.build(run, state, message)
    run.own.finish(status, run.stop)
    _save_rows(run, state, message)


def _description(run: PipelineRun, lines: list[str], scores: dict[str, float]) -> str:
    """The sentence and what to do, a score of each step, the ways to Prefect's page and to the list of runs.

    MLflow shows the first five lines.
    """
    names = [*scores]
    main = [names[:1], *([name for name in names if name.startswith(f"{p.label}/")][:1] for p in run.pending)]
    shown = {name: scores[name] for first in main for name in first}
    found = run.tracker.list_link() if run.own.run_id else ""
    links = [prefect_link(run.own.record.tags), f"[all runs of the experiment]({found})" if found else ""]
    below = [in_words(shown, 8), " - ".join(filter(None, links))]
    return "\n".join([*lines, "", "  \n".join(filter(None, below))])


def prefect_link(tags: Mapping[str, str]) -> str:
    """Markdown that leads to the page of a run; empty without one."""
    address = tags.get("prefect.flow_run")
    return f"[the run in Prefect]({address})" if address else ""


def _one_line(run: PipelineRun) -> str:
    done = [p for p in run.pending if p.row.state in ("done", "unchanged")]
    unchanged = sum(p.row.state == "unchanged" for p in done)
    stopped = [p for p in run.pending if p.row.state == "stopped"]
    rest = len(run.pending) - len(done) - len(run.failed) - len(stopped)
    parts = [f"{len(done)} of {len(run.pending)} steps done{f' ({unchanged} unchanged)' * bool(unchanged)}"]
    parts += [f"{p.label} failed: {p.reason.splitlines()[0]}" for p in run.failed]
    parts += [f"{p.label} stopped" for p in stopped]
    parts += [f"{rest} not run"] if rest else []
    parts += [run.stop.reason] if run.stop() else []
    parts += run.forecast.in_words()
    return "; ".join(parts)


def _upload(run: PipelineRun) -> None:
    for uploader in list(run.uploaders):
        with best_effort():
            uploader.upload()
        if uploader.concluded:
            run.uploaders.remove(uploader)


def _save_rows(run: PipelineRun, state: record.Ending = "running", message: str = "") -> None:
    """Write the rows for `overnight watch`, and the record for the report."""
    run.display.expect(run.forecast.now(run.display.rows) if state == "running" else "")
    with contextlib.suppress(OSError):  # a full disk
        run.display.save(run.own.folder / ROWS, state, message, run.own.link())
        reporting.record_of(run, state, message).write(run.own.folder / record.FILE)


def _check_stop(run: PipelineRun) -> None:
    if run.forecast.reason_to_stop():
        run.stop.ask(run.forecast.reason_to_stop())
    reason = run.engine.stop_reason()
    if reason == CANCELLED:
        run.stop.reason = reason  # the worker's SIGTERM may have come first: it was sent for this
    elif reason:
        run.stop.ask(reason)
