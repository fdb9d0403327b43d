"""A whole run: read the config, build the chain of steps by running the flow's code, wait for all of them, say how it went.

This is the one place where Prefect, MLflow and the children meet. `execute` runs inside a Prefect flow (deployments.py).
"""

import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import paths
from overnight.artifact import Artifact
from overnight.config import Experiment, Params, Source, read, validate
from overnight.errors import ConfigError, DoesNotFit
from overnight.gpu.card import Card, find
from overnight.gpu.preflight import ready, ready_host
from overnight.orchestration import provenance
from overnight.orchestration.background import watching
from overnight.orchestration.child import Result
from overnight.orchestration.launcher import Stop, new_folder
from overnight.orchestration.terminal import Display, Row
from overnight.services import flow_processes
from overnight.step import Builder, Pipeline, Step, building, flow_names, load_pipeline
from overnight.tracking.client import Tracker
from overnight.tracking.record import Record
from overnight.tracking.uploader import Shipper

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


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


class Pending:
    """A step that was submitted: what it will be, once it is done."""

    def __init__(self, label: str, step: Step[Any, Any], upstream: "list[Pending]", row: Row) -> None:
        self.label, self.step, self.upstream, self.row = label, step, upstream, row
        self.result: Result | None = None
        self.reason = ""  # why there is no result
        self.link = ""
        self.future: Any = None
        self.ended = threading.Event()

    @property
    def artifact(self) -> Artifact | None:
        """What the step handed on; None before its end, or when it handed on nothing."""
        value = self.result.value if self.result and self.result.code == 0 else None
        return Artifact.model_validate(value) if value is not None else None


class Chain(Builder):
    """The steps of one run, and what they share."""

    def __init__(
        self, experiment: Experiment, card: Card, tracker: Tracker, run_id: str, display: Display
    ) -> None:
        self.experiment, self.card, self.tracker, self.run_id, self.display = (
            experiment,
            card,
            tracker,
            run_id,
            display,
        )
        self.stop = Stop()
        self.pending: list[Pending] = []
        self.shippers: list[Shipper] = []
        self._known: dict[str, Pending] = {}

    def submit(self, step: Step[Any, Any], *args: Any, **kwargs: Any) -> Pending:
        """Hand a step to Prefect; the same step with the same arguments runs once."""
        bound = inspect.signature(step.body).bind(None, *args, **kwargs)
        bound.apply_defaults()
        arguments = list(bound.arguments.values())[1:]
        identity = f"{step.address} {[id(a) if isinstance(a, Pending) else _plain(a) for a in arguments]}"
        if identity not in self._known:
            self._known[identity] = self._submit(step, arguments)
        return self._known[identity]

    def _submit(self, step: Step[Any, Any], arguments: list[Any]) -> Pending:
        from overnight.orchestration.prefect import submit

        label = self._label(step.name)
        upstream = [a for a in arguments if isinstance(a, Pending)]
        pending = Pending(label, step, upstream, self.display.add(label))
        self.pending.append(pending)
        pending.future = submit(self, pending, arguments)
        pending.future.add_done_callback(
            lambda _future: pending.ended.set()
        )  # its state on the server may end before its thread
        return pending

    def _label(self, name: str) -> str:
        label = self.label(name)
        same = sum(p.label == label or p.label.startswith(f"{label}-") for p in self.pending)
        return f"{label}-{same + 1}" if same else label

    def wait(self) -> None:
        """Until every step has ended; signals are handled in between."""
        from overnight.orchestration.prefect import not_run

        for pending in self.pending:
            while not pending.ended.wait(timeout=0.3):
                pass
            if (
                pending.result is None and not pending.reason
            ):  # its thread could not even begin, or broke outside the step
                why = not_run(self, pending)  # Prefect begins nothing below a step that was cancelled
                pending.reason = (
                    why
                    or "its task run ended before the step did: Prefect did not answer, or refused to start it"
                )
                self.display.change(pending.row, "not run" if why else "failed", pending.reason)


def _plain(value: Any) -> str:
    return str(value.result_params()) if isinstance(value, Params) else str(value)


def execute(path: Path, overrides: Sequence[str] = ()) -> "State[Any]":
    """Run a config from beginning to end, inside a Prefect flow run; the state that the flow run ends in.

    Raises ConfigError, ServiceError before anything is started.
    """
    from overnight import services
    from overnight.orchestration import prefect

    pipeline, experiment = load(path, overrides)
    card = find(experiment.card.use, prefect.wants_cpu(), experiment.card.count, experiment.card.policy)
    ready(card)
    ready_host()
    tracker = Tracker(services.environment()["MLFLOW_TRACKING_URI"], str(experiment.name))
    with Display() as display:
        run_id = _open(tracker, pipeline, experiment, card, path, overrides)
        display.say(f"MLflow: {tracker.link(run_id)}")
        chain = Chain(experiment, card, tracker, run_id, display)
        with _handlers(chain.stop), watching(chain, prefect.links().get("prefect.flow_run_id", "")):
            _build(chain, pipeline)
            chain.wait()
    return _close(chain)


def _build(chain: Chain, pipeline: Pipeline[Any, Any]) -> None:
    """Run the flow's code, which submits its steps; if it fails, what was submitted is stopped."""
    try:
        with building(chain):
            pipeline.body(chain.experiment)
    except BaseException as error:
        chain.stop.ask(f"the flow failed: {error}")
        chain.wait()
        chain.tracker.close(chain.run_id, "FAILED")
        raise


def _open(
    tracker: Tracker,
    pipeline: Pipeline[Any, Any],
    experiment: Experiment,
    card: Card,
    path: Path,
    overrides: Sequence[str],
) -> str:
    """The experiment's own run in MLflow: everything that is logged once."""
    from overnight.orchestration import prefect

    tags = {
        **provenance.tags(card),
        **prefect.links(),
        "overnight.config": paths.shown(path),
        "overnight.flow": pipeline.name,
    }
    run_id = tracker.open(f"{experiment.name} {time.strftime('%Y-%m-%d %H:%M')}", tags)
    params = {"seed": experiment.seed, "config": paths.shown(path), "overrides": " ".join(overrides)}
    tracker.params(run_id, {**params, **provenance.versions()})
    tracker.text(run_id, path.read_text(encoding="utf-8"), f"config/{path.name}")
    tracker.text(run_id, experiment.model_dump_json(indent=1), "config/resolved.json")
    if provenance.dirty_diff():
        tracker.text(run_id, provenance.dirty_diff(), "config/uncommitted.diff")
    return run_id


def _close(chain: Chain) -> "State[Any]":
    """End the experiment's run, print the table, and say in which state the flow ends."""
    from prefect.states import Cancelled, Completed, Failed

    failed = [p for p in chain.pending if p.reason and p.row.state == "failed"]
    one_line = _one_line(chain, failed)
    scores = {
        f"{p.label}/{k.removeprefix('test/')}": v
        for p in chain.pending
        for k, v in p.row.scores.items()
        if k.startswith("test/")
    }
    record = Record(
        uri=chain.tracker.uri, experiment=str(chain.experiment.name), label="scores", run_id=chain.run_id
    )
    shipper = Shipper(chain.tracker, new_folder(f"{chain.experiment.name}-scores"), record)
    shipper.take({"event": "note", "text": one_line})
    shipper.take({"event": "metrics", "values": scores, "step": 0, "at": time.time()})
    shipper.finish("KILLED" if chain.stop() else "FAILED" if failed else "FINISHED", chain.stop)
    chain.display.console.print(chain.display.summary())
    chain.display.say(f"\n{one_line}\n{chain.tracker.link(chain.run_id)}")
    if chain.stop():
        return Cancelled(message=chain.stop.reason)
    if not failed:
        return Completed(message=one_line)
    does_not_fit = all(p.result is not None and p.result.code == DoesNotFit.child_code for p in failed)
    return Failed(name="DoesNotFit" if does_not_fit else "Failed", message=one_line)


def _one_line(chain: Chain, failed: list[Pending]) -> str:
    done = [p for p in chain.pending if p.row.state == "done"]
    stopped = [p for p in chain.pending if p.row.state == "stopped"]
    rest = len(chain.pending) - len(done) - len(failed) - len(stopped)
    parts = [f"{len(done)} of {len(chain.pending)} steps done"]
    parts += [f"{p.label} failed: {p.reason.splitlines()[0]}" for p in failed]
    parts += [f"{p.label} stopped" for p in stopped]
    parts += [f"{rest} not run"] if rest else []
    parts += [chain.stop.reason] if chain.stop() else []
    return "; ".join(parts)


@contextlib.contextmanager
def _handlers(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to stop; a second Ctrl-C stops it at once. Outside the main thread there are no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def reason(number: int) -> str:
        if number == signal.SIGINT:
            return "stopped by Ctrl-C"
        return flow_processes.orphaned(os.environ.get("PREFECT__FLOW_RUN_ID", "")) or "stopped by SIGTERM"

    before = {
        n: signal.signal(n, lambda number, _frame: stop.ask(reason(number)))
        for n in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
