"""The supervisor starts the services in order, watches them, restarts them, and stops them.

A kernel lock allows one for each checkout.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from overnight import locks, paths
from overnight.errors import BadInput
from overnight.files import atomic_write, read_json
from overnight.processes import Process, kill_step_processes, start_python, stop
from overnight.services import backup
from overnight.services.definitions import (
    NO_ANSWER,
    ServiceSpec,
    database_problem,
    databases,
    port_problem,
    services,
)
from overnight.services.reconcile import Reconciler, VramLimitMirror
from overnight.services.settings import (
    SOME_BROKEN,
    Settings,
    enter,
    keep_file,
    request_file,
    settings,
    start_lock,
    state_file,
    supervisor_lock,
    users_folder,
)

TICK_S = 0.2
HEALTH_S = 10.0  # between two checks of a healthy service
STUCK_S = 60.0  # without writes, with no reason to be seen, until a service is started again
IDLE = ("waiting", "retrying", "failed", "unhealthy")
REMOVED = "its database was removed or replaced"
PATIENCE_S = 120.0  # without an answer until a service counts as hung; a training machine is slow to answer
RECONCILE_S = 10.0
STOP_S = 8.0
RUN_GRACE_S = 28.0  # a run that is stopped saves a checkpoint: 20 s, and a little


class Service:
    def __init__(self, spec: ServiceSpec, base: dict[str, str]) -> None:
        self.spec = spec
        self.environment = {**base, **spec.environment}
        self.state = "waiting"
        self.note = ""
        self.lasting = ""  # a note that stays while it is well
        self.failures = 0  # since it was last healthy
        self.before: Any = None  # what it had at its start
        self.inode = 0  # of the database that it opened
        self.log_start = 0  # where this start begins in its log
        self.popen: subprocess.Popen[bytes] | None = None
        self.process: Process | None = None
        self.since = time.time()  # for people; comparisons use the monotonic clock, which has no jumps
        self.started = self.checked = self.healthy = self.changed = 0.0
        self.next_start = 0.0

    def tick(self, ready: set[str]) -> None:
        """Start it, note its end, or check its health; `ready`: the services that are healthy.

        The worker is not checked again once it is ready: it would seem to hang when Prefect's server does.
        """
        if self.popen is None:
            is_due = self.state in IDLE and time.monotonic() >= self.next_start
            if is_due and set(self.spec.needs) <= ready:
                self._start()
        elif self.popen.poll() is not None:
            self._ended(self.popen.returncode)
        elif not self.spec.once and (self.spec.database or self.state != "ready"):
            self._check()

    def _start(self) -> None:
        self.next_start = time.monotonic() + HEALTH_S
        obstacle = database_problem(self.spec.database) or port_problem(self.spec)
        if obstacle:
            self._set_unhealthy(obstacle)
            return
        log = paths.log_file(self.spec.name)
        self.before = self.spec.before()
        self.inode = 0
        self.popen = start_python(self.spec.command, log, self.environment)
        self.log_start = log_size(log)
        self.process = Process.of(self.popen.pid)
        self.since = time.time()
        self.started = self.healthy = time.monotonic()
        self.checked = 0.0
        self.state = "starting"

    def _ended(self, code: int) -> None:
        self.popen = self.process = None
        log = paths.log_file(self.spec.name)
        if self.spec.once and code in (0, SOME_BROKEN):
            self._set_ready()
            self.note = tail(log, 1, self.log_start) if code else ""
            self.since = time.time()
        elif self.spec.once and code == BadInput.exit_code:  # the last line of its log says why
            self._fail(tail(log, 1, self.log_start), final=True)
        elif code < 0:
            self._fail(f"killed by signal {-code} ({paths.shown(log)})")
        else:
            self._fail(tail(log, 2, self.log_start))

    def _check(self) -> None:
        now = time.monotonic()
        if now - self.checked < (2 * TICK_S if self.state == "starting" else HEALTH_S):
            return
        self.checked = now
        outside = database_problem(self.spec.database)
        problem = self._database_removed() or outside or self.spec.problem(self.before)
        if problem == NO_ANSWER:
            if now - self.healthy > PATIENCE_S:
                self._restart(f"gave no answer for {PATIENCE_S:.0f} s")
            return
        self.healthy = time.monotonic()
        is_stuck = self.state == "unhealthy" and now - self.changed > STUCK_S and not outside
        if not problem:
            self._set_ready()
        elif problem == REMOVED or is_stuck:  # what it opened is gone, or nothing that is seen is in its way
            if problem == REMOVED:
                self.lasting = f"started again at {time.strftime('%H:%M:%S')}, since {problem}"
            self._restart(problem)
        else:
            self._set_unhealthy(problem)

    def _database_removed(self) -> str:
        return "" if self.inode in (0, inode(self.spec.database)) else REMOVED

    def _set_unhealthy(self, problem: str) -> None:
        if self.state != "unhealthy":
            self.since = time.time()
            self.changed = time.monotonic()
        self.state = "unhealthy"
        if self.note != problem:
            say(f"{self.spec.name}: {problem}")
        self.note = problem

    def _restart(self, why: str) -> None:
        self.stop()
        self._fail(why)

    def _set_ready(self) -> None:
        self.inode = self.inode or inode(self.spec.database)
        self.failures = 0
        self.state = "ready"
        self.note = self.lasting

    def _fail(self, note: str, final: bool = False) -> None:
        """Retry after 1, 2, 4 ... 30 s; at the third failure in a row, it counts as failed."""
        self.next_start = time.monotonic() + min(30, 2**self.failures)
        self.failures += 1
        self.state = "failed" if final or self.failures > 2 else "retrying"
        self.note = note
        self.since = time.time()
        say(f"{self.spec.name}: {note}")

    def renew(self, spec: ServiceSpec, base: dict[str, str]) -> None:
        self.spec = spec
        self.environment = {**base, **spec.environment}
        self.state = "waiting"
        self.note = ""
        self.failures = 0
        self.next_start = 0.0

    def stop(self) -> None:
        if self.process is not None and self.popen is not None:
            stop([self.process], STOP_S, self.popen.poll)
            self.popen = self.process = None
        self.state = "down"

    def row(self) -> dict[str, Any]:
        return {
            "service": self.spec.name,
            "state": self.state,
            "address": self.spec.address,
            "since": self.since,
            "note": self.note,
            "pid": self.process.pid if self.process else None,
            "started": self.process.started if self.process else None,
        }


class Supervisor:
    def __init__(self, now: Settings) -> None:
        self.settings = now
        enter()
        self.services = {spec.name: Service(spec, dict(os.environ)) for spec in services(now)}
        self.stopping = False
        self.last_needed = time.monotonic()
        self.reconciled = 0.0
        self.reconciler = Reconciler(now)
        self.vram_limit = VramLimitMirror()
        self._written: Any = None

    def run(self, idle_timeout_s: float) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        self.write_state()
        migrated = set[str]()
        for program, database in databases(self.settings):
            if backup.due(program, database):
                copied = backup.copy(program, database)
                say(f"{program}: another version than last time; copied the database to {copied}")
        while not self.stopping:
            self._take_request()
            ready = {name for name, service in self.services.items() if service.state == "ready"}
            for service in self.services.values():
                service.tick(ready)
            self.write_state()
            for program in {"prefect", "mlflow"} & ready - migrated:  # when healthy, not before
                with suppress(OSError):  # a full disk
                    backup.opened(program)
            migrated |= ready
            self._reconcile(ready)
            self._stop_when_idle(idle_timeout_s)
            time.sleep(TICK_S)
        self._stop()

    def write_state(self) -> None:
        rows = [service.row() for service in self.services.values()]
        state = {"settings": asdict(self.settings), "supervisor": os.getpid(), "rows": rows}
        if state != self._written:
            self._written = state
            with suppress(OSError):  # a full disk: `overnight status` looks at disks itself
                atomic_write(state_file(), json.dumps(state))

    def _reconcile(self, ready: set[str]) -> None:
        if "prefect" in ready:
            self.vram_limit.update(self.settings)
        if time.monotonic() - self.reconciled < RECONCILE_S:
            return
        killed = kill_step_processes()
        lines = [f"ended what a killed run has left: pids {', '.join(map(str, killed))}"] if killed else []
        if self.services.keys() & {"prefect", "mlflow"} <= ready:
            worker = self.services["worker"]
            lines += self.reconciler.reconcile(worker.since if worker.process else 0.0)
        for line in lines:
            say(line)
        self.reconciled = time.monotonic()

    def _take_request(self) -> None:
        """Register anew when asked, and with a Prefect that started again, maybe without its data.

        What does not run is started with the environment of who asks. The request stays until the state file
        says that it is taken.
        """
        deployments = self.services["deployments"]
        prefect = self.services.get("prefect")
        is_new = prefect is not None and 0 < deployments.started < prefect.started
        asked = request_file().exists()
        if deployments.popen is not None or not (is_new or asked):
            return
        idle = [service for service in self.services.values() if service.popen is None]
        given = read_json(request_file())
        if given:
            self._take_environment(given, {service.spec.name for service in idle})
        specs = {spec.name: spec for spec in services(self.settings)}
        for service in idle:
            if asked or service is deployments:
                service.renew(specs[service.spec.name], dict(os.environ))
        self.write_state()
        if asked:
            request_file().unlink(missing_ok=True)

    def _take_environment(self, given: dict[str, str], idle: set[str]) -> None:
        os.environ.clear()
        os.environ.update(given)
        asked = Settings.asked(os.environ)
        now = self.settings
        if "prefect" in idle and asked.own_prefect:
            now = replace(now, prefect=asked.prefect)
        if "mlflow" in idle and asked.own_mlflow:
            now = replace(now, mlflow=asked.mlflow)
        self.settings = now
        self.reconciler.settings = now
        self.write_state()
        enter()

    def _stop_when_idle(self, idle_timeout_s: float) -> None:
        if keep_file().exists() or locks.users(users_folder()) or self.reconciler.backlog_worker.busy():
            self.last_needed = time.monotonic()
        if time.monotonic() - self.last_needed < idle_timeout_s:
            return
        try:
            with locks.hold(start_lock(), "the supervisor, which stops since no process needs the services"):
                if not keep_file().exists() and not locks.users(users_folder()):
                    say(f"no process needed the services for {idle_timeout_s:.0f} s")
                    self._stop()
                    self.stopping = True
        except locks.Held:  # a run is just starting
            return

    def _stop(self) -> None:
        """Stop the worker and its runs first, while they can report to Prefect; then the servers together."""
        for name in ("worker", "deployments"):
            service = self.services[name]
            if service.process:
                started = service.process.children()
                service.stop()
                stop(started, RUN_GRACE_S)
        processes = [service.process for service in self.services.values() if service.process]
        popens = [service.popen for service in self.services.values() if service.popen]
        stop(processes, STOP_S, lambda: [popen.poll() for popen in popens])
        for service in self.services.values():
            service.popen = service.process = None
            service.state = "down"
        self.write_state()


def say(line: str) -> None:
    with suppress(OSError):
        print(line, flush=True)


def inode(path: Path | None) -> int:
    try:
        return path.stat().st_ino if path else 0
    except OSError:
        return 0


def log_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def tail(path: Path, lines: int = 2, start: int = 0) -> str:
    """The end of a log in one line, for a message; of what was written from byte `start` on."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - 4000))
            last = [
                line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()
            ][-lines:]
    except FileNotFoundError:
        last = []
    return f"{' | '.join(last)} ({paths.shown(path)})"


def main(idle_timeout_s: float) -> int:
    paths.services().mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(supervisor_lock(), "the supervisor"):
            state_file().unlink(missing_ok=True)  # written by an earlier supervisor
            Supervisor(settings()).run(idle_timeout_s)
    except locks.Held as held:
        print(held, flush=True)
    return 0
