"""One attempt at a step: its MLflow run, its row in the terminal, its page in Prefect's UI."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from overnight import events, paths
from overnight.artifact import Artifact
from overnight.best_effort import best_effort
from overnight.errors import OvernightError, Stopped, one_line
from overnight.files import atomic_write
from overnight.memory import usage
from overnight.night import results
from overnight.night.changes import in_words
from overnight.night.failures import classify, names_of
from overnight.night.key import digest, parts
from overnight.night.results import Result
from overnight.orchestration import provenance
from overnight.orchestration.checks import asked_fresh
from overnight.orchestration.judging import Contest
from overnight.orchestration.launcher import LOG, POLL_S, log_tail, new_folder
from overnight.orchestration.pipeline import Outcome, Pending, PipelineRun, prefect_link
from overnight.orchestration.protocol import StepResult, StepSpec
from overnight.orchestration.terminal import QUIET, memory
from overnight.paths import steps
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import FOLDER, OPEN_S, Uploader
from overnight.training.resume import MONITOR, previous_attempts

PARTS = "parts.json"  # of the step's key, in its folder
FAILURE = "failure"  # tag: the kind of failure that ended the run
FREED_BYTES = 64 << 20  # less may be what logs and caches come and go by
SINCE = "overnight.unchanged_since"  # tag of a skipped step's run: the run that made its result


class Page(Protocol):
    """A step's page in Prefect's UI. Nothing waits for it, and no failure of it reaches the step."""

    def tags(self) -> dict[str, str]:
        """Tags that lead from the MLflow run to the page."""

    def log(self, line: str) -> None:
        """A line of the step's log."""

    def link(self, address: str) -> None:
        """Where its MLflow run is."""

    def progress(self, percent: float, text: str) -> None:
        """How far the step is."""

    def finish(self, done: bool) -> None:
        """Show the last progress."""


def run_step(run: PipelineRun, pending: Pending, arguments: list[Any], page: Page) -> Outcome:
    """Every failure becomes an outcome with a reason, never an exception."""
    reason = run.obstacle(pending)
    if reason:
        return run.end(pending, "not run", reason)
    result = _last_result(run, pending, arguments, page)
    pending.result = result
    if result.code == 0 and pending.since:
        return run.end(pending, "unchanged", f"unchanged since {pending.since.name}")
    if result.code == 0:
        return run.end(pending, "done")
    pending.failure = pending.failure or classify(result)
    reason = result.error.strip() or f"failed without a reason (code {result.code})"
    if result.code == Stopped.child_code:
        return run.end(pending, "stopped", reason)
    return run.end(pending, "failed", f"{reason}\n{pending.failure}")


def _last_result(run: PipelineRun, pending: Pending, arguments: list[Any], page: Page) -> StepResult:
    """Of the last attempt: after a failure that may pass, another one continues the same MLflow run."""
    folders = list[str]()

    def attempt() -> StepResult:
        made = Attempt(run, pending, arguments, page, folders)
        folders.append(str(made.folder))
        return made.run()

    result = _result_of(attempt)
    room = _room()
    for wait_s in run.experiment.retry_after_s:
        failure = pending.failure
        if failure is None or not failure.transient or pending.step.program:
            break  # of a program it is not known what doing it twice does
        run.display.change(pending.row, "queued", f"{failure.kind}: tries again in {wait_s:.0f} s")
        page.log(f"{failure.kind}: {one_line(result.error)}; tries again in {wait_s:.0f} s")
        until = time.monotonic() + wait_s
        while time.monotonic() < until and not run.stop():
            time.sleep(POLL_S)
        if run.stop():
            pending.failure = None
            return StepResult(code=Stopped.child_code, error=f"{run.stop.reason}, after: {result.error}")
        if failure.kind != "disk" or _is_freed(room):
            pending.failure = None
            result = _result_of(attempt)
            room = _room()
    return result


def _room() -> dict[Path, int]:
    """Free bytes where a step may write."""
    places = (
        paths.state(),
        Path(os.environ.get("OVERNIGHT_DATA") or paths.datasets()),
        tempfile.gettempdir(),
    )
    return {Path(place): shutil.disk_usage(place).free for place in places if Path(place).is_dir()}


def _is_freed(before: dict[Path, int]) -> bool:
    return any(free - before.get(place, free) > FREED_BYTES for place, free in _room().items())


def _result_of(call: Callable[[], StepResult]) -> StepResult:
    try:
        return call()
    except OvernightError as error:
        return StepResult(code=error.child_code, error=str(error), raised=names_of(error))
    except Exception as error:  # noqa: BLE001 - the border: other branches go on
        return StepResult(code=1, error=f"{type(error).__name__}: {error}", raised=names_of(error))


class Attempt:
    """A Listener that passes on what happens to MLflow, the terminal and Prefect.

    earlier: folders of the attempts in this run, whose MLflow run it continues.
    """

    def __init__(
        self,
        run: PipelineRun,
        pending: Pending,
        arguments: list[Any],
        page: Page,
        earlier: Sequence[str] = (),
    ) -> None:
        self.pipeline = run
        self.pending = pending
        self.page = page
        self.arguments: list[Any] = [a.artifact if isinstance(a, Pending) else a for a in arguments]
        self.parts = self._parts()
        self.key = pending.key = digest(self.parts)
        pending.since, pending.why = self._recall()
        self.provisional = False  # the result must not be remembered
        self.folder = new_folder(pending.label)
        atomic_write(self.folder / PARTS, json.dumps(self.parts, indent=1))
        before = () if pending.since else (*previous_attempts(self.key), *earlier)
        self.before = tuple(dict.fromkeys(before))
        self.uploader = Uploader(run.tracker, self.folder, self._record())
        pending.uploader = self.uploader
        self.linked = False

    def _parts(self) -> dict[str, str]:
        return parts(self.pending.step, self.pending.seed, self.arguments, self.pipeline.card)

    def _recall(self) -> tuple[Result | None, str]:
        """The remembered result that it takes, or why it runs: empty when it never ran here."""
        step = self.pending.step
        if not step.reproducible:
            return None, "runs every time: it is declared not to be reproducible"
        if asked_fresh(self.pipeline.experiment, self.pending.label, step.name):
            return None, "runs again, as asked for"
        found = results.recall(self.key)
        if isinstance(found, Result):
            return _with_its_run(found), ""
        before = results.last(step.address, self.pending.label, str(self.pipeline.experiment.name))
        if before and before.key != self.key:
            self.pending.changed = results.changed(before.parts, self.parts)
            found = found or f"since {before.name}: {in_words(before.parts, self.parts)}"
        return None, f"runs again: {found}" if found else ""

    def run(self) -> StepResult:
        if self.pending.since:
            return self._skip(self.pending.since)
        run = self.pipeline
        run.display.change(self.pending.row, "queued", self.pending.why)
        for given in self.arguments:
            if isinstance(given, Artifact):
                spec = given.spec.model_dump(mode="json")
                data = {"name": given.kind, "digest": given.digest, "source": str(given.path), "spec": spec}
                self.uploader.log({"event": "data", **data, "at": time.time()})
        if self.pending.why:
            self.uploader.log({"event": "note", "text": self.pending.why, "at": time.time()})
        self.uploader.wait_until_open(run.stop, OPEN_S)
        run.uploaders.append(self.uploader)
        self._link()
        step = StepSpec(
            step=self.pending.step.address,
            label=self.pending.label,
            experiment=str(run.experiment.name),
            arguments=[a.model_dump(mode="json") if hasattr(a, "model_dump") else a for a in self.arguments],
            seed=self.pending.seed,
            key=self.key,
            uncapped=self.pending.step.uncapped,
            earlier=self.before,
            logged_before=self.uploader.run_state.steps,
        )
        result = _result_of(lambda: run.launcher.run(self.folder, step, run.stop, self))
        self._judge(result)
        self._close(result)
        if result.code == 0 and not self.provisional:
            self._remember(result)
        return result

    def _judge(self, result: StepResult) -> None:
        """Register a model that was made, and let the gate decide whether it is the champion."""
        model = Artifact.model_validate(result.value) if result.code == 0 and result.value else None
        if model is None or model.kind != "model":
            return
        run = self.pipeline
        contest = Contest(
            experiment=run.experiment,
            label=self.pending.label,
            step=self.pending.step,
            key=self.key,
            arguments=self.arguments,
            model=model,
            folder=self.folder,
            uploader=self.uploader,
            log=self.log,
        )
        self.pending.promotion = facts = contest.hold(run.launcher, run.stop)
        run.display.say(f"{self.pending.label}: model {facts['name']}: {facts['reason']}")

    def _skip(self, since: Result) -> StepResult:
        """A short run of MLflow with the scores and a link to the run that made them."""
        self.pending.row.scores |= since.scores
        at = time.time()
        made = f"[{since.name}]({since.link})" if since.link else since.name
        self.uploader.log({"event": "metrics", "values": since.scores, "step": 0, "at": at})
        self.uploader.log({"event": "note", "text": f"unchanged since {made}", "at": at})
        self.uploader.finish("FINISHED", self.pipeline.stop)
        self._link()
        value = since.artifact and since.artifact.model_dump(mode="json")
        return StepResult(code=0, value=value)

    def _remember(self, result: StepResult) -> None:
        """Unless its code or data changed while it ran: which of them the child read is unknown then."""
        # The step has ended well, whatever a full disk or a file that is being edited says.
        with best_effort(lambda why: self._say(f"not remembered: {why}")):
            now = self._parts()
            if now != self.parts:
                self._say(f"not remembered: meanwhile changed {in_words(self.parts, now)}")
                return
            scores = self.pending.row.scores.items()
            made = Result(
                key=self.key,
                parts=self.parts,
                step=self.pending.step.address,
                label=self.pending.label,
                experiment=str(self.pipeline.experiment.name),
                value=results.in_state(result.value),
                scores={k: v for k, v in scores if math.isfinite(v) and not k.startswith(QUIET)},
                folder=self.folder.name,
                run_id=self.uploader.run_id,
                link=self.uploader.link() if self.uploader.run_id else "",
                at=time.time(),
                run_s=result.run_s,
            )
            results.remember(made)

    def estimated(self, event: dict[str, Any]) -> None:
        self._take(event)
        self.event(event)

    def event(self, event: dict[str, Any]) -> None:
        row = self.pending.row
        kind = event["event"]
        waits = kind == "wait" or (kind == "log" and self.pending.step.gpu)  # for a place, or for the card
        if row.state == "queued" and waits:
            self.pipeline.display.change(row, "queued", event["text"])
        # The grant itself is logged as a metric.
        elif row.state == "queued" and kind not in ("param", "log", "wait"):
            self.pipeline.display.change(row, "running")
        if kind == "progress":
            self.pipeline.display.progress(row, event)
            self.page.progress(100 * event["done"] / max(event["total"], 1e-9), event["text"])
        elif kind == "provisional":
            self.provisional = True
        elif kind in ("note", "log"):
            row.text = event["text"]
            self.log(event["text"])
            if kind == "note" and self.pending.step.program and len(self.pipeline.pending) > 1:
                self.pipeline.display.say(f"{self.pending.label}: {event['text']}")
        elif kind == "metrics":
            row.scores |= {k: float(v) for k, v in event["values"].items() if not k.startswith(MONITOR)}

    def log(self, line: str) -> None:
        self.page.log(line)
        if self.pending.step.program and len(self.pipeline.pending) == 1:  # `overnight exec` shows its output
            self.pipeline.display.say(line)

    def _say(self, line: str) -> None:
        self.log(line)
        self.pipeline.display.say(f"{self.pending.label}: {line}")

    def _record(self) -> Record:
        run = self.pipeline
        tags = {
            **provenance.tags(run.card),
            **self.page.tags(),
            "overnight.step": self.pending.step.address,
            "overnight.key": self.key,
            FOLDER: str(self.folder),
            "overnight.attempts": str(len(self.before) + 1),
        }
        if self.pending.since:
            tags[SINCE] = self.pending.since.run_id
        tags |= {f"input.{a.kind}": a.digest for a in self.arguments if hasattr(a, "digest")}
        params = {"seed": self.pending.seed, **_flat(self.arguments[0])}
        return Record(
            uri=run.tracker.uri,
            experiment=str(run.experiment.name),
            label=self.pending.label,
            parent=str(run.own.folder),
            tags=tags,
            params={name: str(value) for name, value in params.items()},
            earlier=self.before,
        )

    def _link(self) -> None:
        if self.uploader.run_id and not self.linked:
            self.linked = True
            self.page.link(self.uploader.link())

    def _take(self, event: dict[str, Any]) -> None:
        """Upload an event of the parent's own. Attempts share one run: each has its number as the step."""
        if event["event"] == "metrics":
            event = {**event, "step": len(self.before)}
        elif event["event"] == "param" and self.before:
            event = {**event, "name": f"{event['name']}.{len(self.before) + 1}"}
        self.uploader.log(event)

    def _close(self, result: StepResult) -> None:
        at = time.time()
        log = self.folder / LOG
        self.pending.row.wait_s = result.wait_s
        self.pending.row.memory = memory(result)
        for event in usage.usage_metrics(result):
            self._take(event)
        for event in self._failed(result) if result.code else ():
            self.uploader.log({**event, "at": at})
        if result.code == 0 and self.before:
            self.uploader.log({"event": "tags", "values": {FAILURE: ""}, "at": at})
        self.uploader.log({"event": "note", "text": prefect_link(self.uploader.record.tags), "at": at})
        if log.exists():
            self.uploader.log({"event": "publish", "path": str(log), "folder": "", "at": at})
        status = {0: "FINISHED", Stopped.child_code: "KILLED"}.get(result.code, "FAILED")
        if not self.uploader.finish(status, self.pipeline.stop):
            self.pipeline.display.say(f"{self.pending.label}: {self.uploader.link()}")
        self._link()
        for line in self.uploader.refused:
            self.log(f"MLflow refused {line}")
        self.page.finish(result.code == 0)

    def _failed(self, result: StepResult) -> list[dict[str, Any]]:
        """Events that say why; set the failure."""
        logged = events.read_all(self.folder / events.CHILD)
        notes = [event["text"] for event in logged if event["event"] == "note"]
        self.pending.failure = failure = classify(result, log_tail(self.folder), notes)
        more = [f"- {line}" for line in failure.evidence if line not in result.error]
        texts = (result.error, str(failure), "\n".join(more))
        tags = {"event": "tags", "values": {FAILURE: failure.kind}}
        return [tags, *({"event": "note", "text": text} for text in texts)]


def _with_its_run(found: Result) -> Result:
    """MLflow may have opened its run later, or anew when its database was removed."""
    record = Record.read(steps() / found.folder)
    if record is None or record.run_id in ("", found.run_id):
        return found
    link = ""
    with best_effort():
        link = Tracker(record.uri, record.experiment).link(record.run_id)
    return found.model_copy(update={"run_id": record.run_id, "link": link})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {k: v for name, child in value.items() for k, v in _flat(child, f"{prefix}{name}.").items()}
