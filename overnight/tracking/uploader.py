"""Uploads the event logs of a step to its MLflow run: in order, and each event once.

The event log is the queue: only the portion that is being sent is in memory, and the offsets beside the log
say how far MLflow has it. A server that is down, hangs or answers nonsense does not delay the training; what
it does not take is sent later by this process, by the next attempt at the step, or by `python -m
overnight.tracking.uploader`. That program exits with 0 when nothing is left to upload, and with 1 when a
server was unavailable; the supervisor then starts it again later.
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
from overnight.events import Portion
from overnight.tracking import backlog
from overnight.tracking.backlog import End, Record, UploadOffsets
from overnight.tracking.client import (
    MAX_TEXT,
    NOTE_TAG,
    RunState,
    Tracker,
    allowed,
    append_note,
    log_model,
    mlflow_error,
)

Json = dict[str, Any]
T = TypeVar("T")
PATIENCE_S = 60.0  # at a step's end, without an answer of the server
HURRIED_S = 5.0  # when the run is being stopped
ABANDONED_S = 10.0  # for the folders of ended runs: the next try comes soon
RETRY_S, BUSY_S = 1.0, 0.1
MAX_REFUSED = 50
FOLDER = "overnight.folder"  # tag by which a run is found whose process was killed while it opened the run
LOCAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
PERMANENT_ERRORS = (*LOCAL, ValueError, KeyError, TypeError, OverflowError)  # sending it again would not help


class ServerUnavailable(Exception):
    """The server takes nothing now, or another process uploads this folder."""


class Uploader:
    """Uploads a step's folder to its run. `log` writes the parent's event log; the child writes its own."""

    def __init__(self, tracker: Tracker, folder: Path, record: Record) -> None:
        self.tracker = tracker
        self.folder = folder
        self.record = record.write(folder)
        self.refused: list[str] = []  # what MLflow will never take, and why
        self.run_state = RunState({}, "", {})  # as MLflow had it when the run was opened
        self.concluded = False  # MLflow has everything, including the end
        self._folders = [*map(Path, record.earlier), folder]  # in the order of the attempts
        self._known_offsets: dict[Path, UploadOffsets] = {}
        self._unconfirmed: tuple[Path, str, Portion] | None = None  # being sent
        self._unwritten: list[Json] = []  # events that a full disk did not take
        self._writer: events.Writer | None = None
        self._answers = 0  # requests that the server answered
        self._is_open = False
        self._sending = threading.Lock()
        self._locks = ExitStack()
        with suppress(OSError):  # on a full disk no other process could continue with it
            self._locks.enter_context(backlog.uploading(folder))
            backlog.enqueue(folder)

    @property
    def run_id(self) -> str:
        """Empty until the server has opened the run."""
        return self.record.run_id

    def log(self, event: Json) -> None:
        """Write an event of the parent to its log; never waits for a server."""
        try:
            self._writer = self._writer or events.Writer(self.folder / events.PARENT)
            self._writer.write(event)
        except OSError:
            self._unwritten.append(event)

    def upload(self) -> bool:
        """Send all that is there; False when another thread does. Raises ServerUnavailable."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            self._open()
            self._send_all()
        except (OSError, locks.Held, mlflow_error()) as error:
            raise ServerUnavailable(str(error)) from error
        finally:
            self._sending.release()
        return True

    def waiting(self) -> int:
        """How many events MLflow does not have yet."""
        count = len(self._unwritten)
        for folder in self._folders:
            for name in (events.CHILD, events.PARENT):
                start = self._offsets(folder)[name] if self._is_open else 0
                while (portion := events.read(folder / name, start)).end > start:
                    count += len(portion.events)
                    start = portion.end
        return count

    def upload_all(self, patience_s: float = PATIENCE_S) -> bool:
        """Send all, retrying until the server has taken nothing for `patience_s`; whether it has all."""
        until = time.monotonic() + patience_s
        answers = -1
        while True:
            retry_s = RETRY_S
            with suppress(ServerUnavailable):
                if self.upload():
                    return True
                retry_s = BUSY_S
            if self._answers > answers:
                until = time.monotonic() + patience_s
                answers = self._answers
            if time.monotonic() > until:
                return False
            time.sleep(min(retry_s, patience_s))

    def finish(self, status: str, stop: Callable[[], bool]) -> bool:
        """Send all and end the run; False when the server did not take all, which is then sent later."""
        self.record = self.record.update(self.folder, end=End(status=status, at=time.time()))
        with best_effort():  # the step has ended, whatever becomes of the upload
            call_until_stopped(lambda: self.conclude(HURRIED_S if stop() else PATIENCE_S), stop)
        return self.concluded

    def poll(self) -> None:
        """Upload what is new, and the end when it is known; to be called every few seconds."""
        self.upload()
        if self.record.end is not None:
            self.conclude(0)

    def conclude(self, patience_s: float = PATIENCE_S) -> bool:
        """Send all, and the end if it is known; if MLflow has it all, the folders are no longer pending."""
        if not self.upload_all(patience_s):
            return False
        end = self.record.end
        if end is not None:
            self._unless_refused(lambda: self.tracker.close(self.run_id, end.status, end.at))
        if not any(events.has_writer(folder / events.CHILD) for folder in self._folders):
            for folder in self._folders:
                backlog.mark_done(folder)
        self.concluded = True
        self.release()
        return True

    def release(self) -> None:
        """Let another process upload the folders."""
        self._locks.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # ------------------------------------------------------------------------------------------------ the run

    def wait_until_open(self, stop: Callable[[], bool], patience_s: float) -> bool:
        """Wait at most `patience_s` for the server to open the run; whether it is open."""
        until = time.monotonic() + patience_s
        with best_effort():
            call_until_stopped(self.upload, lambda: stop() or time.monotonic() > until, 0.0)
        return self._is_open

    def _open(self) -> None:
        """Open the run of the attempt before, else a new one, and read its state."""
        if self._is_open:
            return
        for folder in self._folders[:-1]:
            self._locks.enter_context(backlog.uploading(folder))
        if not self.run_id:
            run_id = self._reopened_run() or self._new_run()
            self.record = self.record.update(self.folder, run_id=run_id, opening=False)
        self.run_state = self._unless_refused(lambda: self.tracker.run_state(self.run_id)) or self.run_state
        self._is_open = True

    def _reopened_run(self) -> str:
        """The run of the newest attempt that has one, open again; empty where that was deleted."""
        earlier = [(folder, Record.read(folder)) for folder in self._folders[:-1]]
        run_ids = [record.run_id for _folder, record in earlier if record and record.run_id]
        if not run_ids or not self.tracker.reopen(run_ids[-1], self.record.tags, self.record.parent):
            return ""
        for folder, record in earlier:
            if record and record.end:
                record.update(
                    folder, end=None
                )  # the run continues: an earlier attempt's end must not close it
        return run_ids[-1]

    def _new_run(self) -> str:
        found = self.tracker.find(FOLDER, str(self.folder)) if self.record.opening else None
        self.record = self.record.update(self.folder, opening=True)
        run_id = found or self.tracker.open(self.record.label, self.record.tags, self.record.parent or None)
        self._unless_refused(lambda: self.tracker.params(run_id, self.record.params))
        return run_id

    def _unless_refused(self, call: Callable[[], T]) -> T | None:
        """What the call returns; None, and noted, where the server refuses it for good (a deleted run)."""
        try:
            return call()
        except mlflow_error() as error:
            if not self.tracker.refuses(error):
                raise
            self._note_refusal(str(error))
            return None

    def _note_refusal(self, why: str) -> None:
        if len(self.refused) < MAX_REFUSED:
            self.refused.append(why)

    # ------------------------------------------------------------------------------------------------ sending

    def _send_all(self) -> None:
        done = list[Path]()
        while rest := [folder for folder in self._folders if folder not in done]:
            for name in (events.CHILD, events.PARENT):  # what the parent says of the end comes last
                while self._next_portion(rest[0], name):
                    self._send_portion()
            done.append(rest[0])
        while self._unwritten:
            self._send(self._unwritten[:1])
            del self._unwritten[0]

    def _next_portion(self, folder: Path, name: str) -> bool:
        """Whether there is a portion to send: one that the server has not confirmed, or a new one."""
        if self._unconfirmed is None:
            start = self._offsets(folder)[name]
            portion = events.read(folder / name, start)
            self._unconfirmed = (folder, name, portion) if portion.end > start else None
        return self._unconfirmed is not None

    def _send_portion(self) -> None:
        """Send metrics together, the rest one by one; what was taken is not sent again."""
        assert self._unconfirmed is not None
        folder, name, portion = self._unconfirmed
        self._send([event for event in portion.events if event["event"] == "metrics"])
        portion.events = [event for event in portion.events if event["event"] != "metrics"]
        while portion.events:
            self._send(portion.events[:1])
            del portion.events[0]
        self._offsets(folder)[name] = portion.end
        self._unconfirmed = None

    def _offsets(self, folder: Path) -> UploadOffsets:
        if folder not in self._known_offsets:
            self._known_offsets[folder] = UploadOffsets(folder, self.run_id)
        return self._known_offsets[folder]

    def _send(self, batch: list[Json]) -> None:
        """Send events; halve a batch that is refused for good, down to the refused event, which is noted."""
        if not batch:
            return
        try:
            if len(batch) == 1:
                self._send_one(batch[0])
            else:
                self.tracker.metrics(self.run_id, batch)
            self._answers += 1
        except (OSError, *PERMANENT_ERRORS, mlflow_error()) as error:
            if not self._is_hopeless(error):
                raise
            if len(batch) > 1 and self.tracker.active(self.run_id):
                half = len(batch) // 2
                self._send(batch[:half])
                self._send(batch[half:])
            else:
                self._note_refusal(f"{batch[0]['event']}: {error}")

    def _is_hopeless(self, error: Exception) -> bool:
        """Whether the same request would fail again."""
        if isinstance(error, LOCAL) or (
            isinstance(error, PERMANENT_ERRORS) and not isinstance(error, OSError)
        ):
            return True
        return self.tracker.refuses(error)

    def _send_one(self, event: Json) -> None:
        tracker, run_id, label = self.tracker, self.run_id, self.record.label
        match event["event"]:
            case "metrics":
                tracker.metrics(run_id, [event])
            case "param":
                self._send_param(event["name"], event["value"])
            case "note":
                self.run_state.note = append_note(self.run_state.note, event["text"])
                tracker.tags(run_id, {NOTE_TAG: self.run_state.note})
            case "data":
                tracker.inputs(run_id, event, label)
            case "publish":
                tracker.publish(run_id, Path(event["path"]), event["folder"])
            case "model":
                log_model(tracker, run_id, label, Path(event["path"]), event.get("digest", ""))
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
                self._locks.enter_context(backlog.uploading(folder))
                self._folders.insert(len(self._folders) - 1, folder)
                earlier = tuple(map(str, self._folders[:-1]))
                self.record = self.record.update(self.folder, earlier=earlier)


# ------------------------------------------------------------------------------- folders that ended runs left


def main() -> int:
    """Upload every pending folder that no process uploads; 1 when something is left."""
    left = [step for step in backlog.pending() if not upload_folder(step)]
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
        done = uploader.conclude(ABANDONED_S)
    except (OSError, ServerUnavailable, locks.Held, mlflow_error()) as error:
        print(f"{step.name}: {error}", flush=True)
        return False
    state = "uploaded" if done else f"{uploader.waiting()} events still wait"
    print(f"{step.name}: {state}", *uploader.refused, sep="\n  ", flush=True)
    uploader.release()
    return done


if __name__ == "__main__":
    sys.exit(main())
