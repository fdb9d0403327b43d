"""The supervisor: starts the services in order, watches them, starts them again, and stops them. One for each checkout, by a kernel lock."""

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
from overnight.services.definitions import Spec, databases, services
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
HEALTH_S = 5.0  # between two looks at a service that is well
PATIENCE_S = (
    120.0  # without a good answer until a service counts as hung; a machine that trains is slow to answer
)
CALM_S = 60.0  # well for so long: its earlier deaths are forgotten
LOG_BYTES = 10 << 20
TRUTH_S = 10.0
STOP_S = 8.0
RUN_GRACE_S = 28.0  # a run that is stopped saves a checkpoint: 20 s, and a little


class Service:
    """One service over all its lives."""

    def __init__(self, spec: Spec, base: dict[str, str]) -> None:
        self.spec, self.environment = spec, {**base, **spec.environment}
        self.state, self.note = "waiting", ""
        self.deaths = self.vain = 0  # vain: those since it was last well
        self.popen: subprocess.Popen[bytes] | None = None
        self.hung: Callable[[Process], None] = lambda _process: None  # called before it is stopped for that
        self.process: Process | None = None
        self.since = (
            time.time()
        )  # for people; what is compared is monotonic, since a machine that slept has a jump in the other
        self.looked = self.well = self.begun = time.monotonic()
        self.again = 0.0

    def tick(self, ready: set[str]) -> None:
        """One look; `ready`: the services that are well."""
        if (
            self.state in ("waiting", "retrying", "failed")
            and time.monotonic() >= self.again
            and set(self.spec.needs) <= ready
        ):
            self._start()
        elif self.popen is not None and self.popen.poll() is not None:
            self._ended(self.popen.returncode)
        elif self.popen is not None and not self.spec.once:
            self._look()

    def _start(self) -> None:
        if self.spec.port and not port_is_free(self.spec.port):
            self._fail(taken(self.spec), final=True)
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
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - this process has one thread
        )
        os.close(log)
        self.process = Process.of(self.popen.pid)
        self.since = time.time()
        self.begun = self.well = time.monotonic()
        self.state, self.note, self.looked = "starting", "", 0.0

    def _ended(self, code: int) -> None:
        self.popen = self.process = None
        if self.spec.once and code == 0:
            self.vain, self.state, self.since, self.note = 0, "ready", time.time(), ""
        else:
            log = paths.log_file(self.spec.name)
            told = self.spec.once and code == BadInput.exit_code  # in its last line
            why = (
                f"killed by signal {-code} ({paths.shown(log)})" if code < 0 else tail(log, 1 if told else 2)
            )
            self._fail(why, final=told)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self.looked < (HEALTH_S if self.state == "ready" else 2 * TICK_S):
            return
        self.looked = now
        if self.spec.healthy(self.since):
            self.well = time.monotonic()
            self.deaths = 0 if self.well - self.begun > CALM_S else self.deaths
            self.vain, self.state, self.note = 0, "ready", ""
        elif now - self.well > PATIENCE_S and self.process:
            self.hung(self.process)
            self.stop()
            self._fail(f"gave no answer for {PATIENCE_S:.0f} s")

    def _fail(self, note: str, final: bool = False) -> None:
        """Try again later: after 1, 2, 4 ... 30 s. The third time in vain counts as failed for those that wait for it."""
        self.again = time.monotonic() + min(30, 2**self.deaths)
        self.deaths, self.vain = self.deaths + 1, self.vain + 1
        self.state, self.note, self.since = (
            "failed" if final or self.vain > 2 else "retrying",
            note,
            time.time(),
        )
        print(f"{self.spec.name}: {note}", flush=True)

    def stop(self) -> None:
        """Until it is gone."""
        if self.process is not None and self.popen is not None:
            stop([self.process], STOP_S, self.popen.poll)
            self.popen = self.process = None
        self.state = "down"

    def row(self) -> dict[str, Any]:
        """What others may know."""
        process = (
            {"pid": self.process.pid, "started": self.process.started}
            if self.process
            else {"pid": None, "started": None}
        )
        return {
            "service": self.spec.name,
            "state": self.state,
            "address": self.spec.address,
            "since": self.since,
            "note": self.note,
            **process,
        }


class Supervisor:
    """All services of a checkout."""

    def __init__(self, now: Settings) -> None:
        self.settings = now
        base = {
            k: v for k, v in os.environ.items() if k != "PREFECT_PROFILE" and not k.startswith("PREFECT__")
        } | environment()
        self.services = [Service(spec, base) for spec in services(now)]
        self.stopping = False
        self.unopened = set[str]()
        self.needed, self.looked = time.monotonic(), 0.0
        self.reconciler = Reconciler(now)
        self.orphans = Orphans()
        self.vram_limit = VramLimitMirror()
        for service in [s for s in self.services if s.spec.name == "worker"]:
            service.hung = self.orphans.keep_runs_of
        self._told: Process | None = None
        self._said: Any = None

    def run(self, linger_s: float) -> None:
        """Until SIGTERM, or until nobody has needed the services for *linger_s* and nobody asked to keep them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        self.say()
        self._back_up()
        while not self.stopping:
            ready = {s.spec.name for s in self.services if s.state == "ready"}
            for service in self.services:
                service.tick(ready)
            self.say()
            self._opened(ready)
            self._keep_truth(ready)
            self._linger(linger_s)
            time.sleep(TICK_S)
        self._stop()

    def say(self) -> None:
        """Write the state when it has changed, whole or not at all."""
        said = {
            "settings": self.settings.dump(),
            "supervisor": os.getpid(),
            "rows": [s.row() for s in self.services],
        }
        if said != self._said:
            self._said = said
            atomic_write(state_file(), json.dumps(said))

    def _back_up(self) -> None:
        """Copy what another version is about to migrate."""
        for program, database in databases(self.settings):
            if backup.due(program, database):
                print(
                    f"{program}: another version than last time; copied the database to {backup.copy(program, database)}",
                    flush=True,
                )
            self.unopened.add(program)

    def _opened(self, ready: set[str]) -> None:
        """A database counts as migrated when its server is well, not before."""
        for program in self.unopened & ready:
            backup.opened(program)
            self.unopened.discard(program)

    def _keep_truth(self, ready: set[str]) -> None:
        """What is shown is what is the case: orphans end, dead runs are closed, the card's limit says what is held."""
        if "prefect" in ready:
            self._register_again()
            self.vram_limit.update(self.settings)
        if time.monotonic() - self.looked < TRUTH_S:
            return
        lines = self.orphans.end()
        if {s.spec.name for s in self.services} & {"prefect", "mlflow"} <= ready:
            since = next((s.since for s in self.services if s.spec.name == "worker" and s.process), 0.0)
            lines += self.reconciler.reconcile(since)
        print("\n".join(lines), end="\n" if lines else "", flush=True)
        self.looked = time.monotonic()

    def _register_again(self) -> None:
        """A server that was started again may have lost its database, and with it the deployments."""
        server, told = ({s.spec.name: s for s in self.services}[name] for name in ("prefect", "deployments"))
        if self._told not in (None, server.process) and told.state == "ready":
            told.state = "waiting"
        self._told = server.process

    def _linger(self, linger_s: float) -> None:
        if keep_file().exists() or locks.users(users_folder()) or self.reconciler.backlog_worker.busy():
            self.needed = time.monotonic()
        if time.monotonic() - self.needed < linger_s:
            return
        try:
            with locks.hold(start_lock(), "the supervisor, which stops since nobody needs the services"):
                if not keep_file().exists() and not locks.users(users_folder()):
                    print(f"nobody needed the services for {linger_s:.0f} s", flush=True)
                    self._stop()
                    self.stopping = True
        except locks.Held:  # somebody is just coming
            return

    def _stop(self) -> None:
        """The worker and its runs first, while they can still tell Prefect; then the servers together."""
        for service in reversed(self.services):
            if service.spec.name in ("worker", "deployments") and service.process:
                started = service.process.children()
                service.stop()
                stop(started, RUN_GRACE_S)
        rest = [s for s in self.services if s.process is not None]
        stop(
            [s.process for s in rest if s.process], STOP_S, lambda: [s.popen.poll() for s in rest if s.popen]
        )
        for service in self.services:
            service.popen, service.process, service.state = None, None, "down"
        self.say()


def sweep() -> None:
    """End what a supervisor that was killed has left behind. Only for who holds the start lock."""
    rows = read_state().get("rows", [])
    left = [Process(r["pid"], r["started"]) for r in rows if r.get("pid")]
    stop([p for p in left if p.alive()], STOP_S)


def taken(spec: Spec) -> str:
    """The message for a port that somebody else has."""
    other = f"set {spec.variable} to another port" + (
        ", or change api.url in prefect.toml for good" if spec.name == "prefect" else ""
    )
    return f"{spec.name}: port {spec.port} is taken by {port_listener(spec.port or 0)}; stop that, or {other}"


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


def main(linger_s: float) -> int:
    """Be the supervisor, or leave at once when there is one."""
    paths.services().mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(supervisor_lock(), "the supervisor"):
            state_file().unlink(missing_ok=True)  # an earlier supervisor's words
            Supervisor(settings()).run(linger_s)
    except locks.Held as held:
        print(held, flush=True)
    return 0
