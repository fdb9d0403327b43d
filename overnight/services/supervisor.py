"""The supervisor starts the services in order, watches them, restarts them, and stops them.

A kernel lock allows one for each checkout.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from overnight import locks, paths
from overnight.errors import BadInput
from overnight.files import atomic_write
from overnight.processes import Process, die_with_parent, port_is_free, port_listener, stop
from overnight.services import backup
from overnight.services.definitions import ServiceSpec, databases, services
from overnight.services.reconcile import Orphans, Reconciler
from overnight.services.settings import (
    Settings,
    environment,
    keep_file,
    read_state,
    settings,
    start_lock,
    state_file,
    supervisor_lock,
    users_folder,
)
from overnight.services.vram_limit import VramLimitMirror

TICK_S = 0.2
HEALTH_S = 5.0  # between two checks of a healthy service
PATIENCE_S = 120.0  # without an answer until a service counts as hung; a training machine is slow to answer
RESET_FAILURES_S = 60.0  # healthy for so long: earlier deaths are forgotten
LOG_BYTES = 10 << 20
RECONCILE_S = 10.0
STOP_S = 8.0
RUN_GRACE_S = 28.0  # a run that is stopped saves a checkpoint: 20 s, and a little


class Service:
    """One service, over all its starts."""

    def __init__(self, spec: ServiceSpec, base: dict[str, str]) -> None:
        self.spec = spec
        self.environment = {**base, **spec.environment}
        self.state = "waiting"
        self.note = ""
        self.deaths = 0  # since it was last healthy for RESET_FAILURES_S
        self.failed_starts = 0  # since it was last healthy
        self.popen: subprocess.Popen[bytes] | None = None
        self.process: Process | None = None
        self.before_hang_stop: Callable[[Process], None] = lambda _process: None
        self.since = time.time()  # for people; comparisons use the monotonic clock, which has no jumps
        self.checked = self.healthy = self.begun = time.monotonic()
        self.next_start = 0.0

    def tick(self, ready: set[str]) -> None:
        """Start it, note its end, or check its health; `ready`: the services that are healthy."""
        idle = self.state in ("waiting", "retrying", "failed")
        if idle and time.monotonic() >= self.next_start and set(self.spec.needs) <= ready:
            self._start()
        elif self.popen is not None and self.popen.poll() is not None:
            self._ended(self.popen.returncode)
        elif self.popen is not None and not self.spec.once:
            self._check()

    def _start(self) -> None:
        if self.spec.port and not port_is_free(self.spec.port):
            self._fail(port_problem(self.spec), final=True)
            return
        log = _open_log(self.spec.name)
        self.popen = subprocess.Popen(
            self.spec.command,
            cwd=paths.root(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - one thread
        )
        os.close(log)
        self.process = Process.of(self.popen.pid)
        self.since = time.time()
        self.begun = self.healthy = time.monotonic()
        self.state = "starting"
        self.note = ""
        self.checked = 0.0

    def _ended(self, code: int) -> None:
        self.popen = self.process = None
        if self.spec.once and code == 0:
            self._set_ready()
            self.since = time.time()
            return
        log = paths.log_file(self.spec.name)
        final = self.spec.once and code == BadInput.exit_code  # the last line of its log says why
        if code < 0:
            self._fail(f"killed by signal {-code} ({paths.shown(log)})")
        else:
            self._fail(tail(log, 1 if final else 2), final=final)

    def _check(self) -> None:
        now = time.monotonic()
        if now - self.checked < (HEALTH_S if self.state == "ready" else 2 * TICK_S):
            return
        self.checked = now
        if self.spec.healthy(self.since):
            self.healthy = time.monotonic()
            if self.healthy - self.begun > RESET_FAILURES_S:
                self.deaths = 0
            self._set_ready()
        elif now - self.healthy > PATIENCE_S and self.process:
            self.before_hang_stop(self.process)
            self.stop()
            self._fail(f"gave no answer for {PATIENCE_S:.0f} s")

    def _set_ready(self) -> None:
        self.failed_starts = 0
        self.state = "ready"
        self.note = ""

    def _fail(self, note: str, final: bool = False) -> None:
        """Retry after 1, 2, 4 ... 30 s; at the third failure in a row, it counts as failed."""
        self.next_start = time.monotonic() + min(30, 2**self.deaths)
        self.deaths += 1
        self.failed_starts += 1
        self.state = "failed" if final or self.failed_starts > 2 else "retrying"
        self.note = note
        self.since = time.time()
        print(f"{self.spec.name}: {note}", flush=True)

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        if self.process is not None and self.popen is not None:
            stop([self.process], STOP_S, self.popen.poll)
            self.popen = self.process = None
        self.state = "down"

    def row(self) -> dict[str, Any]:
        """Its line in the state file."""
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
    """All services of a checkout."""

    def __init__(self, now: Settings) -> None:
        self.settings = now
        kept = {
            k: v for k, v in os.environ.items() if k != "PREFECT_PROFILE" and not k.startswith("PREFECT__")
        }
        base = kept | environment()
        self.services = {spec.name: Service(spec, base) for spec in services(now)}
        self.stopping = False
        self.unopened = set[str]()
        self.last_needed = time.monotonic()
        self.reconciled = 0.0
        self.reconciler = Reconciler(now)
        self.orphans = Orphans()
        self.vram_limit = VramLimitMirror()
        self.services["worker"].before_hang_stop = self.orphans.keep_runs_of
        self._registered_with: Process | None = None  # the server that has the deployments
        self._written: Any = None

    def run(self, idle_timeout_s: float) -> None:
        """Run until SIGTERM, or until no process has needed the services for so long."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        self.write_state()
        self._back_up()
        while not self.stopping:
            ready = {name for name, service in self.services.items() if service.state == "ready"}
            for service in self.services.values():
                service.tick(ready)
            self.write_state()
            self._opened(ready)
            self._reconcile(ready)
            self._stop_when_idle(idle_timeout_s)
            time.sleep(TICK_S)
        self._stop()

    def write_state(self) -> None:
        """Write the state file when the state has changed."""
        rows = [service.row() for service in self.services.values()]
        state = {"settings": self.settings.dump(), "supervisor": os.getpid(), "rows": rows}
        if state != self._written:
            self._written = state
            atomic_write(state_file(), json.dumps(state))

    def _back_up(self) -> None:
        """Copy the databases that another version is about to migrate."""
        for program, database in databases(self.settings):
            if backup.due(program, database):
                copied = backup.copy(program, database)
                print(
                    f"{program}: another version than last time; copied the database to {copied}", flush=True
                )
            self.unopened.add(program)

    def _opened(self, ready: set[str]) -> None:
        """A database counts as migrated when its server is healthy, not before."""
        for program in self.unopened & ready:
            backup.opened(program)
            self.unopened.discard(program)

    def _reconcile(self, ready: set[str]) -> None:
        """End orphans, close the runs of killed processes, and mirror the card's ledger in Prefect."""
        if "prefect" in ready:
            self._register_again()
            self.vram_limit.update(self.settings)
        if time.monotonic() - self.reconciled < RECONCILE_S:
            return
        lines = self.orphans.end()
        if self.services.keys() & {"prefect", "mlflow"} <= ready:
            worker = self.services["worker"]
            lines += self.reconciler.reconcile(worker.since if worker.process else 0.0)
        print("\n".join(lines), end="\n" if lines else "", flush=True)
        self.reconciled = time.monotonic()

    def _register_again(self) -> None:
        """A server that was started again may have lost its database, and with it the deployments."""
        server = self.services["prefect"].process
        deployments = self.services["deployments"]
        if self._registered_with not in (None, server) and deployments.state == "ready":
            deployments.state = "waiting"
        self._registered_with = server

    def _stop_when_idle(self, idle_timeout_s: float) -> None:
        if keep_file().exists() or locks.users(users_folder()) or self.reconciler.backlog_worker.busy():
            self.last_needed = time.monotonic()
        if time.monotonic() - self.last_needed < idle_timeout_s:
            return
        try:
            with locks.hold(start_lock(), "the supervisor, which stops since no process needs the services"):
                if not keep_file().exists() and not locks.users(users_folder()):
                    print(f"no process needed the services for {idle_timeout_s:.0f} s", flush=True)
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


def stop_leftovers() -> None:
    """Stop the services that a killed supervisor has left behind. The caller holds the start lock."""
    rows = read_state().get("rows", [])
    left = [Process(row["pid"], row["started"]) for row in rows if row.get("pid")]
    stop([process for process in left if process.alive()], STOP_S)


def port_problem(spec: ServiceSpec) -> str:
    """The message for a port that another process has."""
    remedy = f"set {spec.variable} to another port"
    if spec.name == "prefect":
        remedy += ", or change api.url in prefect.toml for good"
    return (
        f"{spec.name}: port {spec.port} is taken by {port_listener(spec.port or 0)}; stop that, or {remedy}"
    )


def tail(path: Path, lines: int = 2) -> str:
    """The end of a log in one line, for a message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            last = [
                line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()
            ][-lines:]
    except FileNotFoundError:
        last = []
    return f"{' | '.join(last)} ({paths.shown(path)})"


def _open_log(name: str) -> int:
    """Append to its log; a long one is put aside once."""
    path = paths.log_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".1.log"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def main(idle_timeout_s: float) -> int:
    """Be the supervisor, or leave at once when there is one."""
    paths.services().mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(supervisor_lock(), "the supervisor"):
            state_file().unlink(missing_ok=True)  # written by an earlier supervisor
            Supervisor(settings()).run(idle_timeout_s)
    except locks.Held as held:
        print(held, flush=True)
    return 0
