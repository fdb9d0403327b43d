"""The Prefect side; no other module of the engine imports Prefect, but for services/.

A deployment's entrypoint is `overnight.orchestration.prefect.deployment_<flow>`, which `__getattr__` makes of
the file flows/<flow>.py.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import Flow, allow_failure, flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run, task_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from overnight import locks, paths, services
from overnight.best_effort import FireAndForget
from overnight.config import parts_of, read
from overnight.errors import ConfigError, OvernightError, StepFailed, Stopped, TooLate, one_line
from overnight.night.calendar import GRACE, reason_to_skip
from overnight.orchestration.attempt import run_step
from overnight.orchestration.dry_run import check_fresh
from overnight.orchestration.pipeline import CANCELLED, Outcome, Pending, PipelineRun, execute
from overnight.processes import Identity
from overnight.services import flow_processes, register
from overnight.services.definitions import answers
from overnight.services.settings import ENTRYPOINT, settings
from overnight.step import default_config, flow_names, load_pipeline

AWAY_S = 180.0  # how long the end of a run waits for Prefect: a server that starts again on a busy machine
HURRIED_S = 5.0  # the same for a run that was cancelled
AGAIN_S = 0.5
TURN_S = 2.0  # between two looks whether the night before has ended
BROKE = "Flow run encountered an exception:"  # how Prefect begins the message of such an end
PROGRESS_S = 5.0  # each update is a line of `prefect deployment run --watch`, too
REPORT = "morning-report"  # key of the artifact
LAST_S = 2.0  # at most, for the last of it


def __getattr__(name: str) -> Flow[..., Any]:
    prefix = ENTRYPOINT.rpartition(".")[2]
    if name.startswith(prefix) and name.removeprefix(prefix) in flow_names():
        return flow_of(name.removeprefix(prefix))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def flow_of(name: str, ended: "list[State[Any]] | None" = None) -> Flow[..., Any]:
    """The flow; its end is also put into `ended`, where Prefect may not take it."""

    def run(config: str = default_config(name), overrides: list[str] = []) -> Any:  # noqa: B006
        state = _enter(name, config, overrides)
        if ended is not None:
            ended.append(state)
        return state

    run.__doc__ = load_pipeline(name).__doc__
    return flow(name=name, flow_run_name="{config}")(run)


def run_here(name: str, path: Path, overrides: Sequence[str] = ()) -> "State[Any]":
    """Run a config in this process. Raises Held when it is a night that runs already."""
    ended = list[State[Any]]()
    with _alone(name, path):
        try:
            run: Any = flow_of(name, ended)
            state: State[Any] = run(paths.shown(path), list(overrides), return_state=True)
        except (ObjectNotFound, HTTPError) as error:  # its database was removed, or takes nothing
            if not ended:
                raise StepFailed(f"the run broke off, since Prefect failed: {one_line(error)}") from error
    if ended:
        return ended[0]
    _raise_exception_of(state)
    return state


def _raise_exception_of(state: "State[Any]") -> None:
    """A run that ended by an exception has printed no table: raise its reason."""
    reason = state.message or ""
    if not reason.startswith(BROKE):
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, OvernightError):
        raise error
    why = reason.removeprefix(BROKE).strip()
    raise StepFailed(f"the run broke off: {why}; the logs of the services are in .overnight/logs")


def _enter(name: str, config: str, overrides: list[str]) -> Any:
    """The body of every flow; while this process lives, the supervisor knows that the run does."""
    flow_run_id = str(flow_run.id)
    deployed = bool(deployment.id)  # asked now: at the end Prefect's database may be another one
    with flow_processes.running(flow_run_id):
        flow_processes.detach_from_worker_pipe()
        # For the reconciler; when the server does not take them, the files of flow_processes have to do.
        with suppress(OSError, HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
            client.update_flow_run_labels(flow_run.id, {**Identity.mine().tags()})
        if deployed:
            state = _by_deployment(name, config, overrides)
        else:
            state = as_state(execute(paths.root() / config, overrides, PrefectEngine()))
        wait_for_server(HURRIED_S if state.is_cancelled() else AWAY_S)
        flow_processes.save_end(flow_run_id, state.type.value, str(state.name), state.message or "")
    if deployed and not state.is_completed():
        raise Abort(state.message)  # Prefect has the state: a worker that got it again would log a traceback
    return state


def wait_for_server(patience_s: float) -> bool:
    """At the end of a run: Prefect's client gives up at once, and loses the end."""
    until = time.monotonic() + patience_s
    while not answers(f"{settings().prefect}/health"):
        if time.monotonic() >= until:
            return False
        time.sleep(AGAIN_S)
    return True


def _by_deployment(name: str, config: str, overrides: list[str]) -> "State[Any]":
    engine = PrefectEngine(os.getppid())
    try:
        path = checked(name, config, overrides)
        missed = _missed(name)
        if missed.reason:
            state: State[Any] = Cancelled(name="Skipped", message=missed.reason)
        else:
            with services.ensure(f"{deployment.name} ({config})"), _in_turn(name, path, engine, missed.waits):
                state = as_state(execute(path, overrides, engine))
    except locks.Held as held:
        state = Cancelled(message=f"not started, since a night never overlaps itself: {held.by}")
    except Stopped as stopped:
        state = Cancelled(message=str(stopped))
    except TooLate as error:
        state = Cancelled(name="Skipped", message=f"skipped: {error}")
    except OvernightError as error:
        state = Failed(message=str(error))
    if state.is_cancelled() and state.message == engine.lost_worker():  # not by a person
        state = Crashed(message=state.message)
    if not state.is_completed():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, state, force=True)
    return state


def checked(name: str, config: str, overrides: Sequence[str] = ()) -> Path:
    """The file that a deployment is to run. Raises ConfigError."""
    root = paths.root().resolve()
    path = (root / config).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(
            f"config {config!r}: a deployment runs files inside {root} only; use `overnight run` for others"
        )
    values, _ = read(path, overrides)
    other = values.get("flow")
    if other in flow_names() and other != name:
        raise ConfigError(
            f"{paths.shown(path)}: is a config of {other!r}; run it by the deployment {other}/{other}"
        )
    if set(_commands(values)) - set(_commands(read(path)[0])):
        raise ConfigError(
            f"{paths.shown(path)}: a deployment runs the commands that stand in the file, in the "
            "folders that it names; edit the file, or use `overnight run` for others"
        )
    if values.get("fresh"):
        check_fresh(path, overrides)
    return path


def _commands(values: Any) -> Iterator[str]:
    """The programs that a config runs, with their folders."""
    if isinstance(values, dict) and "command" in values:
        yield f"{values['command']} in {values.get('cwd')}"
    for _key, child in parts_of(values) if isinstance(values, dict | list) else ():
        yield from _commands(child)


def _alone(name: str, path: Path) -> AbstractContextManager[None]:
    """For a night: a kernel lock on its config."""
    if name != "nightly":
        return nullcontext()
    lock = paths.state() / "locks" / f"{paths.shown(path).replace('/', '-')}.lock"
    return locks.hold(lock, f"{paths.shown(path)} as {flow_run.name or 'a run by hand'}")


@contextmanager
def _in_turn(name: str, path: Path, engine: "PrefectEngine", waits: bool) -> Iterator[None]:
    """`_alone`, after the nights before it where it waits for them. Raises Held, Stopped."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_alone(name, path))
                break
            except locks.Held:
                if not waits:
                    raise
            reason = engine.stop_reason()
            if reason:
                raise Stopped(reason)
            time.sleep(TURN_S)
        yield


@dataclass(frozen=True)
class Missed:
    """What becomes of a scheduled run that is late. reason: why it is skipped; waits: for those before it."""

    reason: str = ""
    waits: bool = False


def _missed(name: str) -> Missed:
    """By prefect.yaml; a run that a person asked for, or that goes on after a crash, is never skipped."""
    now = datetime.now(UTC)
    with suppress(OSError, HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(str(flow_run.id)))
        due = own.expected_start_time
        if not own.auto_scheduled or own.run_count > 1 or due is None or now - due <= GRACE:
            return Missed()
        same = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[UUID(str(deployment.id))]),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=due, before_=now),
        )
        others = client.read_flow_runs(flow_run_filter=same, limit=200)
        newer = [run.expected_start_time for run in others if run.auto_scheduled and run.expected_start_time]
        policy = register.policy(name)
        return Missed(reason_to_skip(policy, due, newer, now.astimezone()), policy == "all")
    return Missed()


def as_state(outcome: Outcome) -> "State[Any]":
    """Below a task run that is Cancelled Prefect starts nothing."""
    if outcome.state in ("done", "unchanged"):
        return Completed(name="Unchanged" if outcome.state == "unchanged" else None, message=outcome.message)
    if outcome.state == "stopped":
        return Cancelled(message=outcome.message)
    names = {"failed": "Failed", "does not fit": "DoesNotFit", "not run": "NotRun"}
    return Failed(name=names[outcome.state], message=outcome.message)


class PrefectEngine:
    def __init__(self, worker: int = 0) -> None:
        self.worker = worker  # pid of the parent, for a run that a worker started
        self.flow_run_id = str(flow_run.id or "")

    def submit(self, run: PipelineRun, pending: Pending, arguments: list[Any]) -> None:
        def body() -> "State[Any]":
            return as_state(run_step(run, pending, arguments, TaskPage(pending.label)))

        body.__name__ = pending.label.replace("/", "_")
        body.__doc__ = pending.step.__doc__
        made = task(
            name=pending.step.name, task_run_name=pending.label, cache_policy=NO_CACHE, persist_result=False
        )(body)
        upstream = [allow_failure(p.future) for p in pending.upstream]
        pending.future = made.submit(wait_for=upstream, return_state=False)
        # Not at its state on the server, which may end before its thread does.
        pending.future.add_done_callback(lambda _future: pending.ended.set())

    def tags(self) -> dict[str, str]:
        return _links()

    def show_report(self, text: str) -> None:
        aside = FireAndForget()
        aside(lambda: create_markdown_artifact(text, key=REPORT, description="the night, in short"))
        aside.finish(LAST_S)

    def stop_reason(self) -> str:
        if self.lost_worker() or not self.flow_run_id:
            return self.lost_worker()
        state = self._client.read_flow_run(UUID(self.flow_run_id)).state
        return CANCELLED if state and state.type.value in ("CANCELLING", "CANCELLED") else ""

    @cached_property
    def _client(self) -> SyncPrefectClient:
        """For all questions of a run: each new one reads the machine's certificates."""
        return get_client(sync_client=True)

    def lost_worker(self) -> str:
        """That the worker which started this process has died; empty while it lives."""
        if not self.worker or os.getppid() == self.worker:
            return ""
        return f"its worker (pid {self.worker}) is gone: killed, or broken down"


def _links() -> dict[str, str]:
    if not flow_run.id:
        return {}
    return {
        "prefect.flow_run_id": str(flow_run.id),
        "prefect.flow_run": str(flow_run.ui_url or ""),
        "prefect.name": str(flow_run.name or ""),
    }


class TaskPage:
    def __init__(self, label: str) -> None:
        self.label = label
        plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in label.lower())
        self.slug = plain.strip("-") or "step"
        self.aside = FireAndForget()
        self._artifact: Any = None
        self._shown_at = 0.0

    def tags(self) -> dict[str, str]:
        return {**_links(), "prefect.task_run_id": str(task_run.id or "")}

    def log(self, line: str) -> None:
        get_run_logger().info(line)

    def link(self, address: str) -> None:
        key = f"mlflow-{self.slug}"
        if address.startswith("http"):
            self.aside(lambda: create_link_artifact(address, "MLflow run", key=key, description=self.label))

    def progress(self, percent: float, text: str) -> None:
        if time.monotonic() - self._shown_at >= PROGRESS_S:
            self._shown_at = time.monotonic()
            self.aside(lambda: self._show(percent, f"{self.label} {text}"))

    def finish(self, done: bool) -> None:
        self.aside.finish(LAST_S)
        if self._artifact is not None and done:
            self.aside(lambda: self._show(100.0, f"{self.label} "))
            self.aside.finish(LAST_S)

    def _show(self, percent: float, description: str) -> None:
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, key=self.slug, description=description)
        else:
            update_progress_artifact(self._artifact, percent, description=description)
