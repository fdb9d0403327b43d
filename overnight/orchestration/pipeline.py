"""One run of a config: check it, run the flow's code, which submits its steps, and wait for all of them.

Prefect is behind the protocol Engine: `execute` runs inside a Prefect flow (prefect.py).
"""

import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from overnight import paths, services
from overnight.artifact import Artifact
from overnight.best_effort import best_effort
from overnight.config import Experiment, Params, Source, read, validate
from overnight.errors import ConfigError, DoesNotFit
from overnight.gpu.card import Card, find
from overnight.gpu.ledger.filesystem import check_ledger, check_slots
from overnight.orchestration import provenance
from overnight.orchestration.launcher import Launcher, Local, Stop, new_folder
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import Display, StepRow
from overnight.step import Builder, Pipeline, Step, building, flow_names, load_pipeline
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import Uploader

UPLOAD_S = 2.0
CANCEL_POLL_S = 2.0
LAST_S = 2.0  # for the threads that poll, at the end: a server may hang
CANCELLED = "cancelled in Prefect"


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline[Any, Any], Experiment]:
    """The flow a config names, and its checked values; ConfigError with every mistake."""
    values, source = read(path, overrides)
    pipeline = _flow(values.get("flow"), source)
    experiment = validate(pipeline.experiment, values, source)
    return pipeline, experiment.model_copy(update={"name": experiment.name or path.stem})


def _flow(name: Any, source: Source) -> Pipeline[Any, Any]:
    known = flow_names()
    if name not in known:
        given = f"unknown flow {name!r}" if name else "is required and missing"
        raise ConfigError(
            [*source.problems, f"{source.at(('flow',))}: flow: {given}; there are {', '.join(known)}"]
        )
    return load_pipeline(name)


@dataclass(frozen=True)
class Outcome:
    """How a step or a run ended, with the reason."""

    state: Literal["done", "failed", "does not fit", "stopped", "not run"]
    message: str


class Pending:
    """A step that was submitted; its result is there once it has ended."""

    def __init__(self, label: str, step: Step[Any, Any], upstream: "list[Pending]", row: StepRow) -> None:
        self.label = label
        self.step = step
        self.upstream = upstream
        self.row = row
        self.result: StepResult | None = None
        self.reason = ""  # why there is no result
        self.link = ""  # to its MLflow run
        self.future: Any = None  # of the engine
        self.ended = threading.Event()

    @property
    def artifact(self) -> Artifact | None:
        """The returned artifact; None before the end, or when nothing was returned."""
        value = self.result.value if self.result and self.result.code == 0 else None
        return Artifact.model_validate(value) if value is not None else None


class Engine(Protocol):
    """Runs the steps of a run, each in a thread, and shows them in its UI."""

    def submit(self, run: "PipelineRun", pending: Pending, arguments: list[Any]) -> None:
        """Run the step when those upstream have ended, well or not; sets `pending.ended` at the end."""

    def tags(self) -> dict[str, str]:
        """Tags that lead from MLflow to this run."""

    def stop_reason(self) -> str:
        """CANCELLED, or why else the run is to stop; may raise when its server does not answer."""


class PipelineRun(Builder):
    """The steps of one run, and what they share."""

    def __init__(
        self,
        experiment: Experiment,
        card: Card,
        tracker: Tracker,
        run_id: str,
        display: Display,
        engine: Engine,
        launcher: Launcher,
    ) -> None:
        self.experiment = experiment
        self.card = card
        self.tracker = tracker
        self.run_id = run_id  # in MLflow
        self.display = display
        self.engine = engine
        self.launcher = launcher
        self.stop = Stop()
        self.pending: list[Pending] = []
        self.uploaders: list[Uploader] = []
        self._known: dict[str, Pending] = {}

    def submit(self, step: Step[Any, Any], *args: Any, **kwargs: Any) -> Pending:
        """Submit a step to the engine; the same step with the same arguments runs once."""
        bound = inspect.signature(step.body).bind(None, *args, **kwargs)
        bound.apply_defaults()
        arguments = list(bound.arguments.values())[1:]
        identity = f"{step.address} {[id(a) if isinstance(a, Pending) else _plain(a) for a in arguments]}"
        if identity not in self._known:
            self._known[identity] = self._submit(step, arguments)
        return self._known[identity]

    def _submit(self, step: Step[Any, Any], arguments: list[Any]) -> Pending:
        label = self._label(step.name)
        upstream = [a for a in arguments if isinstance(a, Pending)]
        pending = Pending(label, step, upstream, self.display.add(label))
        self.pending.append(pending)
        self.engine.submit(self, pending, arguments)
        return pending

    def _label(self, name: str) -> str:
        label = self.label(name)
        same = sum(p.label == label or p.label.startswith(f"{label}-") for p in self.pending)
        return f"{label}-{same + 1}" if same else label

    def obstacle(self, pending: Pending) -> str:
        """Why a step must not start; empty when it may."""
        missing = [p for p in pending.upstream if p.result is None or p.result.code]
        if not missing and not self.stop():
            return ""
        why = ", ".join(
            f"{p.label} {'was not run' if p.row.state == 'not run' else 'failed'}" for p in missing
        )
        return f"not run: {self.stop.reason or why}"

    def wait(self) -> None:
        """Wait until every step has ended; signals are handled in between."""
        for pending in self.pending:
            while not pending.ended.wait(timeout=0.3):
                pass
            if pending.result is None and not pending.reason:
                self._explain(pending)

    def _explain(self, pending: Pending) -> None:
        """Give a step a reason whose thread never started, or broke outside the step."""
        obstacle = self.obstacle(pending)  # Prefect starts nothing below a step that was cancelled
        refused = "its task run ended before the step did: Prefect did not answer, or refused to start it"
        pending.reason = obstacle or refused
        self.display.change(pending.row, "not run" if obstacle else "failed", pending.reason)

    @property
    def failed(self) -> list[Pending]:
        """The steps that failed by themselves, once all have ended."""
        return [p for p in self.pending if p.reason and p.row.state == "failed"]


def _plain(value: Any) -> str:
    return str(value.result_params()) if isinstance(value, Params) else str(value)


def execute(path: Path, overrides: Sequence[str], engine: Engine) -> Outcome:
    """Run a config from beginning to end. Raises ConfigError, ServiceError before anything is started."""
    pipeline, experiment = load(path, overrides)
    card = find(experiment.card.use, wants_cpu(), experiment.card.count, experiment.card.policy)
    check_ledger(card)
    check_slots()
    tracker = Tracker(services.environment()["MLFLOW_TRACKING_URI"], str(experiment.name))
    tags = {**engine.tags(), "overnight.config": paths.shown(path), "overnight.flow": pipeline.name}
    with Display() as display:
        run_id = _open(tracker, experiment, {**provenance.tags(card), **tags}, path, overrides)
        display.say("\n".join([*read(path, overrides)[1].left_out, f"MLflow: {tracker.link(run_id)}"]))
        run = PipelineRun(experiment, card, tracker, run_id, display, engine, Local(card))
        with _handlers(run.stop), _polling(run):
            _build(run, pipeline)
            run.wait()
    return _close(run)


def wants_cpu() -> bool:
    """`overnight run --cpu`."""
    return bool(os.environ.get("OVERNIGHT_CPU"))


def _build(run: PipelineRun, pipeline: Pipeline[Any, Any]) -> None:
    """Run the flow's code, which submits its steps; if it fails, the submitted steps are stopped."""
    try:
        with building(run):
            pipeline.body(run.experiment)
    except BaseException as error:
        run.stop.ask(f"the flow failed: {error}")
        run.wait()
        run.tracker.close(run.run_id, "FAILED")
        raise


def _open(
    tracker: Tracker, experiment: Experiment, tags: dict[str, str], path: Path, overrides: Sequence[str]
) -> str:
    """Open the experiment's own run in MLflow, with everything that is logged once; its id."""
    run_id = tracker.open(f"{experiment.name} {time.strftime('%Y-%m-%d %H:%M')}", tags)
    params = {"seed": experiment.seed, "config": paths.shown(path), "overrides": " ".join(overrides)}
    tracker.params(run_id, {**params, **provenance.versions()})
    tracker.text(run_id, path.read_text(encoding="utf-8"), f"config/{path.name}")
    tracker.text(run_id, experiment.model_dump_json(indent=1), "config/resolved.json")
    if provenance.dirty_diff():
        tracker.text(run_id, provenance.dirty_diff(), "config/uncommitted.diff")
    return run_id


def _close(run: PipelineRun) -> Outcome:
    """End the experiment's run in MLflow, and print the table."""
    one_line = _one_line(run)
    scores = {
        f"{p.label}/{k.removeprefix('test/')}": v
        for p in run.pending
        for k, v in p.row.scores.items()
        if k.startswith("test/")
    }
    outcome = _outcome(run, one_line)
    record = Record(
        uri=run.tracker.uri, experiment=str(run.experiment.name), label="scores", run_id=run.run_id
    )
    uploader = Uploader(run.tracker, new_folder(f"{run.experiment.name}-scores"), record)
    uploader.log({"event": "note", "text": one_line})
    uploader.log({"event": "metrics", "values": scores, "step": 0, "at": time.time()})
    status = {"stopped": "KILLED", "done": "FINISHED"}.get(outcome.state, "FAILED")
    uploader.finish(status, run.stop)
    run.display.console.print(run.display.summary())
    run.display.say(f"\n{one_line}\n{run.tracker.link(run.run_id)}")
    return outcome


def _outcome(run: PipelineRun, one_line: str) -> Outcome:
    if run.stop():
        return Outcome("stopped", run.stop.reason)
    if not run.failed:
        return Outcome("done", one_line)
    codes = {p.result.code if p.result is not None else None for p in run.failed}
    return Outcome("does not fit" if codes == {DoesNotFit.child_code} else "failed", one_line)


def _one_line(run: PipelineRun) -> str:
    done = [p for p in run.pending if p.row.state == "done"]
    stopped = [p for p in run.pending if p.row.state == "stopped"]
    rest = len(run.pending) - len(done) - len(run.failed) - len(stopped)
    parts = [f"{len(done)} of {len(run.pending)} steps done"]
    parts += [f"{p.label} failed: {p.reason.splitlines()[0]}" for p in run.failed]
    parts += [f"{p.label} stopped" for p in stopped]
    parts += [f"{rest} not run"] if rest else []
    parts += [run.stop.reason] if run.stop() else []
    return "; ".join(parts)


# -------------------------------------------------------------------------------- beside the steps


@contextlib.contextmanager
def _polling(run: PipelineRun) -> Iterator[None]:
    """While the block runs, events are uploaded every 2 s, and a cancellation is noticed as soon."""
    done = threading.Event()
    threads = [
        threading.Thread(target=_upload, args=(run, done), daemon=True, name="upload"),
        threading.Thread(target=_watch_cancel, args=(run, done), daemon=True, name="watch-cancel"),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(LAST_S)


def _upload(run: PipelineRun, done: threading.Event) -> None:
    while not done.wait(UPLOAD_S):
        for uploader in list(run.uploaders):
            with best_effort():
                uploader.upload()
        run.uploaders[:] = [uploader for uploader in run.uploaders if not uploader.concluded]


def _watch_cancel(run: PipelineRun, done: threading.Event) -> None:
    while not done.wait(CANCEL_POLL_S):
        with best_effort():
            reason = run.engine.stop_reason()
            if reason == CANCELLED:
                run.stop.reason = reason  # the worker's SIGTERM may have come first: it was sent for this
            elif reason:
                run.stop.ask(reason)


@contextlib.contextmanager
def _handlers(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to stop; a second Ctrl-C stops it at once.

    Outside the main thread, where no handler can be set, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    reasons: dict[int, str] = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
    before = {n: signal.signal(n, lambda number, _frame: stop.ask(reasons[number])) for n in reasons}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
