"""The Prefect side of a run: a task run for each step, progress and links in its UI, cancelling from there."""

import os
import time
from typing import TYPE_CHECKING, Any

from overnight.artifact import Artifact
from overnight.errors import OvernightError, Stopped
from overnight.memory import request, subprocess, usage
from overnight.memory.request import Ask
from overnight.night.key import key
from overnight.orchestration import provenance, restart
from overnight.orchestration.child import Result, Spec
from overnight.orchestration.launcher import new_folder, run_child, slot
from overnight.orchestration.prefect_artifacts import Traces
from overnight.orchestration.terminal import memory
from overnight.tracking.record import Record
from overnight.tracking.uploader import FOLDER, Shipper
from overnight.training.resume import MONITOR, previous_attempts

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from overnight.orchestration.pipeline import Chain, Pending

OPEN_S = 10.0  # how long a step waits for MLflow to open its run, before it begins without


def wants_cpu() -> bool:
    """`overnight run --cpu`."""
    return bool(os.environ.get("OVERNIGHT_CPU"))


def links() -> dict[str, str]:
    """Tags that lead from MLflow to the Prefect run."""
    from prefect.runtime import flow_run

    if not flow_run.id:
        return {}
    return {
        "prefect.flow_run_id": str(flow_run.id),
        "prefect.flow_run": str(flow_run.ui_url or ""),
        "prefect.name": str(flow_run.name or ""),
    }


def submit(chain: "Chain", pending: "Pending", arguments: list[Any]) -> Any:
    """A Prefect task run that starts when those it depends on have ended, well or not; its future."""
    from prefect import allow_failure, task
    from prefect.cache_policies import NO_CACHE

    def body() -> "State[Any]":
        return _task(chain, pending, arguments)

    body.__name__, body.__doc__ = pending.label.replace("/", "_"), pending.step.__doc__
    made = task(
        name=pending.step.name, task_run_name=pending.label, cache_policy=NO_CACHE, persist_result=False
    )(body)
    return made.submit(wait_for=[allow_failure(p.future) for p in pending.upstream], return_state=False)


def _task(chain: "Chain", pending: "Pending", arguments: list[Any]) -> "State[Any]":
    """What the thread of a task run does; every ending becomes a state with a reason, never a traceback for the user."""
    from prefect.states import Cancelled, Completed, Failed

    if reason := not_run(chain, pending):
        pending.reason = reason
        chain.display.change(pending.row, "not run", reason)
        return Failed(
            name="NotRun", message=reason
        )  # below one that is cancelled Prefect begins nothing, whatever is allowed
    try:
        result = _Attempt(chain, pending, arguments).run()
    except OvernightError as error:
        result = Result(code=error.child_code, error=str(error))
    except Exception as error:  # noqa: BLE001 - the border: a server that is away must not take the other branches with it
        result = Result(code=1, error=f"{type(error).__name__}: {error}")
    pending.result = result
    if result.code == 0:
        chain.display.change(pending.row, "done")
        return Completed(message="; ".join(pending.row.text.splitlines()[:1]))
    pending.reason = result.error.strip() or f"failed without a reason (code {result.code})"
    stopped = result.code == Stopped.child_code
    chain.display.change(pending.row, "stopped" if stopped else "failed", pending.reason.splitlines()[0])
    return Cancelled(message=pending.reason) if stopped else Failed(message=pending.reason)


def not_run(chain: "Chain", pending: "Pending") -> str:
    """Why a step is not to begin; empty where nothing is in its way."""
    missing = [p for p in pending.upstream if p.result is None or p.result.code]
    why = ", ".join(f"{p.label} {'was not run' if p.row.state == 'not run' else 'failed'}" for p in missing)
    return f"not run: {chain.stop.reason or why}" if missing or chain.stop() else ""


class _Attempt:
    """One try at a step: its MLflow run, its child, its traces in Prefect's UI."""

    def __init__(self, chain: "Chain", pending: "Pending", arguments: list[Any]) -> None:
        self.chain, self.pending = chain, pending
        self.arguments: list[Any] = [a.artifact if type(a) is type(pending) else a for a in arguments]
        self.key = key(pending.step, chain.experiment.seed, self.arguments, chain.card)
        self.folder = new_folder(pending.label)
        self.traces = Traces(pending.label)
        self.number = 1
        self.latest = dict[str, float]()
        self.asked = Ask(0)

    def run(self) -> Result:
        """Wait for a place on the host, then run."""
        self.chain.display.change(self.pending.row, "queued")
        with slot(self.pending.label, self.chain.stop, self._log) as running:
            return self._run(max(1, (os.cpu_count() or 1) // running))

    def _run(self, threads: int) -> Result:
        """Open the run, follow the child to its end, close the run. MLflow may be away all the while: then it is told later."""
        record = self._record()
        self.number = len(record.earlier) + 1
        self.shipper = Shipper(self.chain.tracker, self.folder, record)
        for given in self.arguments:
            if isinstance(given, Artifact):
                self.shipper.take(input_event(given))
        self.shipper.ready(self.chain.stop, OPEN_S)
        self.chain.shippers.append(self.shipper)
        self._link()
        result = Result(code=Stopped.child_code, error=self.chain.stop.reason or "stopped")
        try:
            spec = self._spec()
            result = restart.through(
                lambda one: run_child(self.folder, one, threads, self.chain.stop, self._event, self._log),
                spec,
            )
            foreseen = {"asked_mib": spec.ask_mib, **usage.of_prediction(self.asked)}
            result = usage.for_the_card(result.model_copy(update=foreseen), self.chain.card)
        except OvernightError as error:
            result = Result(code=error.child_code, error=str(error))
        finally:
            self._close(result)
        return result

    def _ask(self) -> Ask:
        """What of the card the step asks for. Raises DoesNotFit."""
        if not self.pending.step.gpu:
            return Ask(0)
        self.chain.display.change(self.pending.row, "queued", "works out how much of the card it needs")
        asked = subprocess.ask(self.pending.step, self.arguments, self.chain.card, self.chain.stop)
        for event in usage.of_asking(asked):
            self._own(event)
            self._event(event)
        self.asked = asked
        return asked

    def _spec(self) -> Spec:
        step, asked = self.pending.step, self._ask()
        return Spec(
            step=step.address,
            label=self.pending.label,
            experiment=str(self.chain.experiment.name),
            arguments=[a.model_dump(mode="json") if hasattr(a, "model_dump") else a for a in self.arguments],
            seed=self.chain.experiment.seed,
            key=self.key,
            parent=os.getpid(),
            card=self.chain.card,
            ask_mib=asked.mib,
            micro_batch=asked.micro_batch,
            exclusive=asked.exclusive,
            smaller=asked.smaller,
            outside=step.outside,
            earlier=self.shipper.record.earlier,
            logged_before=self.shipper.said.steps,
        )

    def _record(self) -> Record:
        """All that MLflow is told when the run is opened, now or when the server is there."""
        from prefect.runtime import task_run

        before, chain = previous_attempts(self.key), self.chain
        tags = {
            **provenance.tags(chain.card),
            **links(),
            "overnight.step": self.pending.step.address,
            "overnight.key": self.key,
        }
        tags |= {
            FOLDER: str(self.folder),
            "overnight.attempts": str(len(before) + 1),
            "prefect.task_run_id": str(task_run.id or ""),
        }
        tags |= {f"input.{a.kind}": a.digest for a in self.arguments if hasattr(a, "digest")}
        return Record(
            uri=chain.tracker.uri,
            experiment=str(chain.experiment.name),
            label=self.pending.label,
            parent=chain.run_id,
            tags=tags,
            params={
                name: str(value)
                for name, value in {"seed": chain.experiment.seed, **_flat(self.arguments[0])}.items()
            },
            earlier=before,
        )

    def _link(self) -> None:
        """To the run's page, once there is a run."""
        if self.shipper.run_id and not self.pending.link:
            self.pending.link = self.chain.tracker.link(self.shipper.run_id)
            self.traces.link(self.pending.link)

    def _event(self, event: dict[str, Any]) -> None:
        row = self.pending.row
        if row.state == "queued" and event["event"] == "log" and self.pending.step.gpu:
            self.chain.display.change(row, "queued", event["text"])  # for what it waits
        elif row.state == "queued" and event["event"] not in (
            "param",
            "log",
        ):  # its grant is logged as a metric
            self.chain.display.change(row, "running")
        if event["event"] == "progress":
            self.chain.display.progress(row, event)
            self.traces.progress(100 * event["done"] / max(event["total"], 1e-9), event["text"])
        elif event["event"] in ("note", "log"):
            row.text = event["text"]
            self._log(event["text"])
        elif event["event"] == "metrics":
            self.latest |= {k: float(v) for k, v in event["values"].items() if not k.startswith(MONITOR)}
        row.scores = self.latest

    def _own(self, event: dict[str, Any]) -> None:
        """An event of the parent's own. What an earlier attempt took stands in the same run: each has its number."""
        if event["event"] == "metrics":
            event = {**event, "step": self.number - 1}
        elif event["event"] == "param" and self.number > 1:
            event = {**event, "name": f"{event['name']}.{self.number}"}
        self.shipper.take(event)

    def _log(self, line: str) -> None:
        from prefect.logging import get_run_logger

        get_run_logger().info(line)

    def _close(self, result: Result) -> None:
        """The last events, what the run cost, and its end."""
        row, at = self.pending.row, time.time()
        row.wait_s, row.memory = result.wait_s, memory(result)
        for event in usage.of_ending(result):
            self._own(event)
        if self.pending.step.gpu:
            request.learn(
                self.pending.step, self.arguments, self.chain.card, result, finished=result.code == 0
            )
        row.scores = self.latest
        if result.code:
            self.shipper.take({"event": "note", "text": result.error, "at": at})
        if (self.folder / "log.txt").exists():
            self.shipper.take(
                {"event": "publish", "path": str(self.folder / "log.txt"), "folder": "", "at": at}
            )
        status = (
            "FINISHED" if result.code == 0 else "KILLED" if result.code == Stopped.child_code else "FAILED"
        )
        if not self.shipper.finish(status, self.chain.stop):
            where = f"{self.shipper.left()} events wait in {self.folder} and are told when it does"
            self.chain.display.say(f"{self.pending.label}: MLflow did not answer; {where}")
        self._link()
        for line in self.shipper.refused:
            self._log(f"MLflow refused {line}")
        self.traces.finish(result.code == 0)


def input_event(given: Artifact) -> dict[str, Any]:
    """An upstream artifact as an input of the run that takes it."""
    spec = given.spec.model_dump(mode="json")
    return {
        "event": "data",
        "name": given.kind,
        "digest": given.digest,
        "source": str(given.path),
        "spec": spec,
        "at": time.time(),
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted names."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {k: v for name, child in value.items() for k, v in _flat(child, f"{prefix}{name}.").items()}
