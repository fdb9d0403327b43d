"""Uploads the event logs of a step to its MLflow run: in order, and each event once.

The event log is the queue: only the portion that is being sent is in memory. A server that is down, hangs or
answers nonsense does not delay the training; what it does not take is sent later by this process, by the next
attempt at the step, or by `python -m overnight.tracking.uploader`, which exits with 1 when a server was
unavailable; the supervisor then starts it again later.
"""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from overnight import events, locks
from overnight.best_effort import best_effort, call_until_stopped
from overnight.errors import one_line
from overnight.events import Json
from overnight.paths import shown
from overnight.tracking import backlog
from overnight.tracking.backlog import End, Record
from overnight.tracking.client import (
    MAX_TEXT,
    NOTE_TAG,
    RunState,
    Tracker,
    allowed,
    append_note,
    mlflow_error,
    without_verdicts,
)
from overnight.tracking.models import log_model
from overnight.tracking.registry import Registry

T = TypeVar("T")
OPEN_S = 10.0  # how long a run waits for MLflow to open it before it begins without
PATIENCE_S = 30.0  # at a step's end, without an answer of the server
HURRIED_S = 5.0  # when the run is being stopped
ABANDONED_S = 10.0  # for the folders of ended runs: the next try comes soon
RETRY_S = 1.0
MAX_REFUSED = 50
FOLDER = "overnight.folder"  # tag by which a run is found whose process was killed while it opened the run
LOCAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
INVALID = (ValueError, KeyError, TypeError, OverflowError)


class ServerUnavailable(Exception):
    """The server takes nothing now, or another process uploads this folder."""


class Uploader:
    """`log` writes the parent's event log; the child writes its own."""

    def __init__(self, tracker: Tracker, folder: Path, record: Record) -> None:
        self.tracker = tracker
        self.folder = folder
        self.record = record.write(folder)
        self.refused: list[str] = []  # what MLflow will never take, and why
        self.run_state = RunState({}, "", {})  # as MLflow had it when the run was opened
        self.problem = ""  # why the server took nothing the last time
        self.concluded = False  # MLflow has everything, including the end
        self._offsets = dict[Path, int]()  # up to which byte MLflow has each event log
        self._unwritten: list[Json] = []  # events that a full disk did not take
        self._writer: events.Writer | None = None
        self._answered = 0.0  # monotonic time at which the server last took something
        self._is_open = False
        self._recording = threading.Lock()
        self._sending = threading.Lock()
        self._locked = set[Path]()  # folders of earlier attempts
        self._locks = ExitStack()
        with suppress(OSError):  # on a full disk no other process could continue with it
            self._locks.enter_context(backlog.uploading(folder))
            backlog.enqueue(folder)

    @property
    def run_id(self) -> str:
        """Empty until the server has opened the run."""
        return self.record.run_id

    @property
    def _folders(self) -> list[Path]:
        return [*map(Path, self.record.earlier), self.folder]

    def log(self, event: Json) -> None:
        """Write an event; never waits for a server."""
        try:
            self._writer = self._writer or events.Writer(self.folder / events.PARENT)
            self._writer.write(event)
        except OSError:
            self._unwritten.append(event)

    def upload(self, wait_s: float = 0.0) -> bool:
        """Send all that is there, and the end when it is known.

        Returns False when another thread has been sending for `wait_s`. Raises ServerUnavailable.
        """
        if not self._sending.acquire(timeout=wait_s):
            return False
        try:
            if not self.concluded:
                self._open()
                self._send_all()
            self.problem = ""
        except (OSError, locks.Held, mlflow_error(), ServerUnavailable) as error:
            self.problem = one_line(error)
            raise ServerUnavailable(str(error)) from error
        finally:
            self._sending.release()
        return True

    def link(self) -> str:
        """Where a browser finds the run; how much waits for its server where that has not taken all."""
        if self._is_open and (self.concluded or self.record.end is None):
            return self.tracker.link(self.run_id)
        why = f"it takes nothing now ({self.problem})" if self.problem else "it has not answered yet"
        return f"{why}; {self.waiting()} events wait in {shown(self.folder)} and are uploaded when it does"

    def waiting(self) -> int:
        logs = [log for folder in self._folders for log in _logs(folder)]
        starts = [self._offset(log) if self._is_open else 0 for log in logs]
        return len(self._unwritten) + sum(1 for one in map(events.read_all, logs, starts) for _event in one)

    def upload_all(self, patience_s: float = PATIENCE_S) -> bool:
        """Retry until the server has taken nothing for `patience_s`; whether it has all."""
        began = time.monotonic()
        while True:
            with suppress(ServerUnavailable):
                if self.upload(min(RETRY_S, patience_s)):
                    return True
            if time.monotonic() > max(began, self._answered) + patience_s:
                return False
            time.sleep(min(RETRY_S, patience_s))

    def finish(self, status: str, stop: Callable[[], bool]) -> bool:
        """Send all and end the run; False when the rest is sent later."""
        self._update(end=End(status=status, at=time.time()))
        with best_effort():  # the step has ended, whatever becomes of the upload
            call_until_stopped(lambda: self.upload_all(HURRIED_S if stop() else PATIENCE_S), stop)
        return self.concluded

    def mark_done(self) -> None:
        for folder in self._folders:
            backlog.mark_done(folder)
        self.concluded = True
        self.release()

    def release(self) -> None:
        """Let another process upload the folders."""
        self._locks.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def wait_until_open(self, stop: Callable[[], bool], patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        with best_effort():
            call_until_stopped(self.upload, lambda: stop() or time.monotonic() > until, 0.0)
        return self._is_open

    def _update(self, **changes: Any) -> None:
        with self._recording:
            self.record = self.record.update(self.folder, **changes)

    def _open(self) -> None:
        if self._is_open:
            return
        for folder in self._folders[:-1]:
            self._take_over(folder)
        if self.run_id and self.tracker.lost(self.run_id, self.record.created):
            self._update(run_id="", opening=False)
            self._offsets.clear()
        if not self.run_id:
            run_id = self._reopened_run() or self._new_run()
            self._update(run_id=run_id, opening=False, created=self.tracker.created)
        self.run_state = self._unless_refused(lambda: self.tracker.run_state(self.run_id)) or self.run_state
        self._is_open = True

    def _take_over(self, folder: Path) -> None:
        """Raises locks.Held while another process uploads it."""
        if folder not in self._locked:
            self._locks.enter_context(backlog.uploading(folder))
            self._locked.add(folder)

    def _reopened_run(self) -> str:
        """Of the newest attempt that has one; empty where that was deleted."""
        earlier = [(folder, Record.read(folder)) for folder in self._folders[:-1]]
        run_ids = [record.run_id for _folder, record in earlier if record and record.run_id]
        if not run_ids or not self.tracker.reopen(run_ids[-1], self.record.tags, self._parent()):
            return ""
        for folder, record in earlier:
            if record and record.end:  # the run continues: an earlier attempt's end must not close it
                record.update(folder, end=None)
        return run_ids[-1]

    def _parent(self) -> str:
        """The run of the experiment, which is opened first. Raises ServerUnavailable while it is not."""
        if "/" not in self.record.parent:
            return self.record.parent
        above = Record.read(Path(self.record.parent))
        if above is None:  # removed
            return ""
        if not above.run_id or self.tracker.lost(above.run_id, above.created):
            raise ServerUnavailable("the run of the experiment is not open yet")
        return above.run_id

    def _new_run(self) -> str:
        found = self.tracker.find(FOLDER, str(self.folder)) if self.record.opening else None
        self._update(opening=True)
        run_id = found or self.tracker.open(self.record.label, self.record.tags, self._parent() or None)
        self._unless_refused(lambda: self.tracker.params(run_id, self.record.params))
        return run_id

    def _unless_refused(self, call: Callable[[], T]) -> T | None:
        """None, and noted, where the server refuses it for good (a deleted run)."""
        try:
            return call()
        except mlflow_error() as error:
            if not self.tracker.refuses(error):
                raise
            self._check_database()
            self._note_refusal(str(error))
            return None

    def _check_database(self) -> None:
        """Begin anew with a run that is gone with its database. Raises ServerUnavailable then."""
        if self.tracker.lost(self.run_id, self.record.created):
            self._is_open = False
            raise ServerUnavailable("its database was removed; everything is sent again")

    def _note_refusal(self, why: str) -> None:
        if why not in self.refused and len(self.refused) < MAX_REFUSED:
            self.refused.append(why)

    def _send_all(self) -> None:
        for folder in self._folders:
            self._send_folder(folder)
        while self._unwritten:
            self._send(self._unwritten[:1])
            del self._unwritten[0]
        end = self.record.end
        if end is not None:
            note = without_verdicts(self.run_state.note)
            if end.status == "FINISHED" and note != self.run_state.note:
                self._unless_refused(lambda: self.tracker.tags(self.run_id, {NOTE_TAG: note}))
            self._unless_refused(lambda: self.tracker.close(self.run_id, end.status, end.at))
            self.mark_done()

    def _send_folder(self, folder: Path) -> None:
        """Send metrics together, the rest one by one; MLflow keeps what is sent again once."""
        for log in _logs(folder):
            self._send_log(log)

    def _send_log(self, log: Path) -> None:
        while (portion := events.read(log, self._offset(log))).end > self._offset(log):
            self._send([event for event in portion.events if event["event"] == "metrics"])
            for event in portion.events:
                if event["event"] != "metrics":
                    self._send([event])
            self._offsets[log] = portion.end
            backlog.write_offset(log, self.run_id, portion.end)

    def _offset(self, log: Path) -> int:
        if log not in self._offsets:
            self._offsets[log] = backlog.read_offset(log, self.run_id)
        return self._offsets[log]

    def _send(self, batch: list[Json]) -> None:
        """Send metrics, or another event; halve a batch that is refused, down to the event that is noted."""
        if not batch:
            return
        try:
            self._request(batch)
            self._answered = time.monotonic()
        except (OSError, *INVALID, mlflow_error()) as error:
            if not self._is_hopeless(error):
                raise
            self._check_database()
            if len(batch) > 1 and self.tracker.active(self.run_id):
                half = len(batch) // 2
                self._send(batch[:half])
                self._send(batch[half:])
            else:
                self._note_refusal(f"{batch[0]['event']}: {error}")

    def _is_hopeless(self, error: Exception) -> bool:
        """Whether the same request would fail again. An answer that is no JSON is ValueError and OSError."""
        wrong = isinstance(error, LOCAL) or (isinstance(error, INVALID) and not isinstance(error, OSError))
        return wrong or self.tracker.refuses(error)

    def _request(self, batch: list[Json]) -> None:
        event = batch[0]
        tracker = self.tracker
        run_id = self.run_id
        match event["event"]:
            case "metrics":
                tracker.metrics(run_id, batch)
            case "param":
                self._send_param(event["name"], event["value"])
            case "note":
                self.run_state.note = append_note(self.run_state.note, event["text"])
                tracker.tags(run_id, {NOTE_TAG: self.run_state.note})
            case "tags":
                tracker.tags(run_id, event["values"])
            case "data":
                tracker.inputs(run_id, event, self.record.label)
            case "publish":
                tracker.publish(run_id, Path(event["path"]), event["folder"])
            case "model":
                log_model(tracker, run_id, self.record.label, Path(event["path"]), event.get("digest", ""))
            case "register" | "judged":
                self._send_log(self.folder / events.CHILD)  # the child logged the model before its end
                Registry(tracker).take(run_id, event)
            case "continues":
                self._continue(event["folders"])

    def _send_param(self, name: str, value: str) -> None:
        """Log a param. MLflow takes it once; a decided value becomes `<name>.used`, later ones a number."""
        (name,) = allowed({name: ""})
        value = value[:MAX_TEXT]
        names = [name, f"{name}.used"] if name in self.record.params else [name]
        names += [f"{names[-1]}.{number}" for number in range(2, 100)]
        params = self.run_state.params
        chosen = next((one for one in names if params.setdefault(one, value) == value), names[-1])
        self.tracker.params(self.run_id, {chosen: value})

    def _continue(self, folders: list[str]) -> None:
        """Upload first what earlier attempts left that only the child knew of."""
        for folder in map(Path, folders):
            if folder not in self._folders:
                self._take_over(folder)
                self._update(earlier=(*self.record.earlier, str(folder)))
                self._send_folder(folder)


def _logs(folder: Path) -> tuple[Path, Path]:
    return folder / events.CHILD, folder / events.PARENT  # what the parent says of the end comes last


def main() -> int:
    """Upload all pending folders; 1 when something is left."""
    # The runs of experiments first: those of their steps hang below them.
    order = sorted(backlog.pending(), key=lambda step: bool(getattr(Record.read(step), "parent", "")))
    left = [step for step in order if not upload_folder(step)]
    return 1 if left else 0


def upload_folder(step: Path) -> bool:
    """Whether MLflow now has all of a folder, with the end of its run where that is known."""
    record = Record.read(step)
    if record is None:  # a full disk, or a power cut in that moment: where it belongs is unknown
        print(f"{step.name}: has no readable record; its events stay there", flush=True)
        backlog.mark_done(step)
        return True
    try:
        uploader = Uploader(Tracker(record.uri, record.experiment), step, record)
        done = uploader.upload_all(ABANDONED_S)
    except (OSError, locks.Held, mlflow_error()) as error:
        print(f"{step.name}: {error}", flush=True)
        return False
    if done:
        uploader.mark_done()
    uploader.release()
    state = "uploaded" if done else f"{uploader.waiting()} events still wait"
    print(f"{step.name}: {state}", *uploader.refused, sep="\n  ", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
