"""Carries the spools of one step to its MLflow run: in order, each event once, whatever happens to the server or to this process.

Nothing waits in memory but the portion that is being sent: the spool is the queue, and `shipped.json` beside it says how far it is
told. A server that is away, hangs or answers nonsense costs the training nothing; what it does not take stays where it is, is sent
when it is back, and, when this process is gone by then, is sent by the next attempt or by the supervisor (`overnight.tracking.upload`).
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from overnight import events, locks
from overnight.best_effort import best_effort, call_until_stopped
from overnight.events import Portion
from overnight.tracking import backlog, description
from overnight.tracking.client import MAX_TEXT, Said, Tracker, allowed, mlflow_error
from overnight.tracking.models import publish_model
from overnight.tracking.record import End, Record, Shipped

Json = dict[str, Any]
T = TypeVar("T")
PATIENCE_S = 60.0  # at a step's end, without an answer of the server
HURRIED_S = 5.0  # when the run is being stopped
AGAIN_S, BUSY_S = 1.0, 0.1
MOST_REFUSED = 50
FOLDER = "overnight.folder"  # the tag by which a run is found that was opened by a process that died in that moment
LOCAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
HOPELESS = (*LOCAL, ValueError, KeyError, TypeError, OverflowError)  # sending it again would not help


class Away(Exception):
    """The server does not take anything now, or somebody else is shipping."""


class Shipper:
    """One step's folder and its run. `take` writes to the parent's own spool; the child writes to the other one."""

    def __init__(self, tracker: Tracker, folder: Path, record: Record) -> None:
        self.tracker, self.folder, self.record = tracker, folder, record.write(folder)
        self.refused: list[str] = []
        self.said = Said({}, "", {})
        self._folders = [*map(Path, record.earlier), folder]  # in the order of the attempts
        self._shipped: dict[Path, Shipped] = {}
        self._held: tuple[Path, str, Portion] | None = None  # what the server has not yet said it has
        self._unwritten: list[Json] = []  # what a full disk did not take
        self._writer: events.Writer | None = None
        self.concluded = False  # all is told, the end too
        self._answers = 0  # of the server
        self._ready, self._sending, self._locks = False, threading.Lock(), ExitStack()
        with suppress(OSError):  # on a full disk nobody else could go on with it
            self._locks.enter_context(backlog.shipping(folder))
            backlog.owe(folder)

    @property
    def run_id(self) -> str:
        """Empty until the server has been there to open it."""
        return self.record.run_id

    def take(self, event: Json) -> None:
        """An event of the parent; never waits for a server."""
        try:
            self._writer = self._writer or events.Writer(self.folder / events.PARENT)
            self._writer.write(event)
        except OSError:
            self._unwritten.append(event)

    def ship(self) -> bool:
        """Send all that is there; False when another thread is at it. Raises Away, what was not taken stays."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            self._open()
            self._send_all()
        except (OSError, locks.Held, mlflow_error()) as error:
            raise Away(str(error)) from error
        finally:
            self._sending.release()
        return True

    def left(self) -> int:
        """Events that MLflow does not have yet."""
        left = len(self._unwritten)
        for folder in self._folders:
            for name in (events.CHILD, events.PARENT):
                start = self._told(folder)[name] if self._ready else 0
                while (portion := events.read(folder / name, start)).end > start:
                    left, start = left + len(portion.events), portion.end
        return left

    def drain(self, patience_s: float = PATIENCE_S) -> bool:
        """Send all that is there, trying again for a while since the server last took something; whether all of it is told."""
        until, before = time.monotonic() + patience_s, -1
        while True:
            again_s = AGAIN_S
            with suppress(Away):
                if self.ship():
                    return True
                again_s = BUSY_S
            until, before = (
                (time.monotonic() + patience_s, self._answers) if self._answers > before else (until, before)
            )
            if time.monotonic() > until:
                return False
            time.sleep(min(again_s, patience_s))

    def finish(self, status: str, stop: Callable[[], bool]) -> bool:
        """Send all that waits and end the run; False when the server took not all of it now. Then `go_on` tells it later, or the supervisor."""
        self.record = self.record.now(self.folder, end=End(status=status, at=time.time()))
        with best_effort():  # a training that came to its end has done so, whatever becomes of the telling
            call_until_stopped(lambda: self.conclude(HURRIED_S if stop() else PATIENCE_S), stop)
        return self.concluded

    def go_on(self) -> None:
        """What is to be done every now and then."""
        self.ship()
        if self.record.end is not None:
            self.conclude(0)

    def conclude(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether everything is told, the end too if it is known: then nothing is owed for these folders any more."""
        if not self.drain(patience_s):
            return False
        if (end := self.record.end) is not None:
            self._unless_gone(lambda: self.tracker.close(self.run_id, end.status, end.at))
        if not any(events.written(folder / events.CHILD) for folder in self._folders):
            for folder in self._folders:
                backlog.settle(folder)
        self.concluded = True
        self.release()
        return True

    def release(self) -> None:
        """Somebody else may ship."""
        self._locks.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # ------------------------------------------------------------------------------------------------ the run

    def ready(self, stop: Callable[[], bool], patience_s: float) -> bool:
        """Wait a little for the server to open the run; whether it is open."""
        until = time.monotonic() + patience_s
        with best_effort():
            call_until_stopped(self.ship, lambda: stop() or time.monotonic() > until, 0.0)
        return self._ready

    def _open(self) -> None:
        """Have the run: that of the attempt before, else a new one; and know what it holds."""
        if self._ready:
            return
        for folder in self._folders[:-1]:
            self._locks.enter_context(backlog.shipping(folder))
        if not self.run_id:
            self.record = self.record.now(self.folder, run_id=self._earlier() or self._new(), opening=False)
        self.said = self._unless_gone(lambda: self.tracker.said(self.run_id)) or self.said
        self._ready = True

    def _earlier(self) -> str:
        """The run of the newest attempt that has one, open again; empty where that is gone."""
        found = [
            record.run_id
            for folder in self._folders[:-1]
            if (record := Record.read(folder)) and record.run_id
        ]
        if not found or not self.tracker.reopen(found[-1], self.record.tags, self.record.parent):
            return ""
        for folder in self._folders[:-1]:
            if (record := Record.read(folder)) and record.end:
                record.now(folder, end=None)  # it goes on: nobody is to tell the end of an attempt before
        return found[-1]

    def _new(self) -> str:
        found = self.tracker.find(FOLDER, str(self.folder)) if self.record.opening else None
        self.record = self.record.now(self.folder, opening=True)
        run_id = found or self.tracker.open(self.record.label, self.record.tags, self.record.parent or None)
        self._unless_gone(lambda: self.tracker.params(run_id, self.record.params))
        return run_id

    def _unless_gone(self, call: Callable[[], T]) -> T | None:
        """What it returns; None, and noted, where the server refuses it for good: a run that somebody deleted takes nothing any more."""
        try:
            return call()
        except mlflow_error() as error:
            if not self.tracker.refuses(error):
                raise
            self._refuse(str(error))
            return None

    def _refuse(self, why: str) -> None:
        if len(self.refused) < MOST_REFUSED:
            self.refused.append(why)

    # ------------------------------------------------------------------------------------------------ sending

    def _send_all(self) -> None:
        done = list[Path]()
        while rest := [folder for folder in self._folders if folder not in done]:
            for name in (events.CHILD, events.PARENT):  # what the parent says of the end comes last
                while self._next(rest[0], name):
                    self._send()
            done.append(rest[0])
        while self._unwritten:
            self._once(self._unwritten[:1])
            del self._unwritten[0]

    def _next(self, folder: Path, name: str) -> bool:
        """Have a portion to send: the one that the server did not take, or one that is new."""
        if self._held is None:
            start = self._told(folder)[name]
            portion = events.read(folder / name, start)
            self._held = (folder, name, portion) if portion.end > start else None
        return self._held is not None

    def _send(self) -> None:
        """Metrics together, all else one by one; what was taken is not sent again when something after it fails."""
        assert self._held is not None
        folder, name, portion = self._held
        self._once([event for event in portion.events if event["event"] == "metrics"])
        portion.events = [event for event in portion.events if event["event"] != "metrics"]
        while portion.events:
            self._once(portion.events[:1])
            del portion.events[0]
        self._told(folder)[name] = portion.end
        self._held = None

    def _told(self, folder: Path) -> Shipped:
        if folder not in self._shipped:
            self._shipped[folder] = Shipped(folder, self.run_id)
        return self._shipped[folder]

    def _once(self, events: list[Json]) -> None:
        """Send; what is refused for good is noted, so that it holds up nothing else: of many, only the one that is to blame."""
        if not events:
            return
        try:
            self._one(events[0]) if len(events) == 1 else self.tracker.metrics(self.run_id, events)
            self._answers += 1
        except (OSError, *HOPELESS, mlflow_error()) as error:
            hopeless = isinstance(error, HOPELESS) and (
                isinstance(error, LOCAL) or not isinstance(error, OSError)
            )
            if not hopeless and not self.tracker.refuses(error):
                raise
            if len(events) > 1 and self.tracker.active(self.run_id):
                half = len(events) // 2
                self._once(events[:half])
                self._once(events[half:])
            else:
                self._refuse(f"{events[0]['event']}: {error}")

    def _one(self, event: Json) -> None:
        tracker, run_id = self.tracker, self.run_id
        kinds: Mapping[str, Callable[[], None]] = {
            "metrics": lambda: tracker.metrics(run_id, [event]),
            "param": lambda: self._param(event["name"], event["value"]),
            "note": lambda: self._note(event["text"]),
            "data": lambda: tracker.inputs(run_id, event, self.record.label),
            "publish": lambda: tracker.publish(run_id, Path(event["path"]), event["folder"]),
            "model": lambda: publish_model(
                tracker, run_id, self.record.label, Path(event["path"]), event.get("digest", "")
            ),
            "continues": lambda: self._continue(event["folders"]),
        }
        kinds.get(event["event"], lambda: None)()

    def _param(self, name: str, value: str) -> None:
        """MLflow takes a param once. One that was asked for and decided otherwise (precision: auto) is kept as both, later values by number."""
        (name,), value = allowed({name: ""}), value[:MAX_TEXT]
        tries = [name, f"{name}.used"] if name in self.record.params else [name]
        tries += [f"{tries[-1]}.{number}" for number in range(2, 100)]
        chosen = next((one for one in tries if self.said.params.setdefault(one, value) == value), tries[-1])
        self.tracker.params(self.run_id, {chosen: value})

    def _note(self, text: str) -> None:
        self.said.note = description.added(self.said.note, text)
        self.tracker.tags(self.run_id, {description.TAG: self.said.note})

    def _continue(self, folders: list[str]) -> None:
        """The child found attempts that nobody knew of when the run was opened: theirs is told before anything that comes next."""
        for folder in map(Path, folders):
            if folder not in self._folders:
                self._locks.enter_context(backlog.shipping(folder))
                self._folders.insert(len(self._folders) - 1, folder)
                self.record = self.record.now(self.folder, earlier=tuple(map(str, self._folders[:-1])))
