"""Start and stop the services, wait for them, and show their state."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

from overnight import locks, paths
from overnight.errors import OvernightError, ServiceError
from overnight.processes import Process, port_is_free, stop
from overnight.services.definitions import answers, services
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
from overnight.services.supervisor import RUN_GRACE_S, port_problem, stop_leftovers, tail

PATIENCE_S = 240.0
IDLE_TIMEOUT_S = 60.0  # without users, until the supervisor stops
REMEDY = "start that server, or unset the variable for one of our own"
STARTS = 3  # of a supervisor that is killed while it is waited for
GUARD_S = 3.0  # how often a run checks that its services have a supervisor


class Row(TypedDict):
    """One line of `overnight status`."""

    service: str
    state: str
    address: str
    pid: int | None
    since: str
    note: str


def up(wait: bool = True) -> None:
    """Start what is missing, keep it until `down`, and register what changed. Raises ServiceError."""
    ran_before = locks.holder(supervisor_lock()) is not None
    _start(keep=True)
    if wait and ran_before:
        _wait({"prefect"})
        _register()
    if wait:
        _wait({"prefect", "mlflow", "deployments", "worker"})


def _register() -> None:
    """Register changes of flows/ and prefect.yaml since the services started. Raises ServiceError."""
    command = [sys.executable, "-m", "overnight.services.register"]
    env = {**os.environ, **environment()}
    done = subprocess.run(command, cwd=paths.root(), env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(
            (done.stdout + done.stderr).strip().splitlines()[-1:] or "deployments: not registered"
        )


def down(force: bool = False) -> None:
    """Stop everything, with `force` also the runs that need the services. Raises ServiceError."""
    paths.services().mkdir(parents=True, exist_ok=True)
    with locks.hold(start_lock(), "overnight down", wait=True):
        users = locks.users(users_folder())
        if users and not force:
            names = "; ".join(map(str, users))
            raise ServiceError(
                f"not stopped, since the services are needed by {names}; "
                "stop that (Ctrl-C there), or use --force"
            )
        _end([u.pid for u in users if u.pid != os.getpid()])
        keep_file().unlink(missing_ok=True)
        supervisor = locks.holder(supervisor_lock())
        if supervisor is not None:
            _end([supervisor.pid])  # which stops its services
        stop_leftovers()
        state_file().unlink(missing_ok=True)


def status() -> list[Row]:
    """The services, with those that are not ours, and who needs them."""
    now = settings()
    alive = locks.holder(supervisor_lock())
    rows = {r["service"]: _row(r, alive is not None) for r in read_state().get("rows", [])}
    shown = [rows.get(s.name) or _missing(s.name, s.address) for s in services(now)]
    theirs = [
        ("prefect", now.prefect, now.own_prefect, "PREFECT_API_URL"),
        ("mlflow", now.mlflow, now.own_mlflow, "MLFLOW_TRACKING_URI"),
    ]
    shown += [_theirs(name, address, variable) for name, address, ours, variable in theirs if not ours]
    return shown + [
        Row(service="user", state="needs them", address="", pid=u.pid, since=_clock(u.since), note=u.who)
        for u in locks.users(users_folder())
    ]


@contextmanager
def ensure(who: str = "") -> Iterator[None]:
    """Prefect's API and MLflow are up in the block: what is missing is started. Raises ServiceError."""
    with locks.register(users_folder(), who or " ".join(sys.argv)[:120]):
        if settings().own_prefect or settings().own_mlflow:
            _start(keep=False)
        _wait({"prefect", "mlflow"})
        done = threading.Event()
        threading.Thread(target=_guard, args=(done,), daemon=True, name="services").start()
        try:
            yield
        finally:
            done.set()


def _guard(done: threading.Event) -> None:
    """Start the services again when their supervisor was killed, as long as this process needs them."""
    while not done.wait(GUARD_S):
        if not (settings().own_prefect or settings().own_mlflow) or locks.holder(supervisor_lock()):
            continue
        try:
            _start(keep=keep_file().exists())
        except (OvernightError, OSError) as error:  # tried again
            print(
                f"the services are gone and could not be started again: {error}", file=sys.stderr, flush=True
            )
            done.wait(10 * GUARD_S)


def _start(keep: bool) -> None:
    """Start the supervisor if none is running."""
    paths.services().mkdir(parents=True, exist_ok=True)
    with locks.hold(start_lock(), "a start of the services", wait=True):
        if keep:
            keep_file().touch()
        if locks.holder(supervisor_lock()) is None:
            if not keep:
                keep_file().unlink(missing_ok=True)
            stop_leftovers()
            state_file().unlink(missing_ok=True)
            _check_ports(settings())
            print(
                f"starting Prefect and MLflow (logs in {paths.shown(paths.log_file('prefect').parent)})",
                file=sys.stderr,
                flush=True,
            )
            _spawn(keep)


def _check_ports(now: Settings) -> None:
    problems = [port_problem(s) for s in services(now) if s.port and not port_is_free(s.port)]
    if problems:
        keep_file().unlink(missing_ok=True)
        raise ServiceError(problems)


def _spawn(keep: bool) -> None:
    """Start the supervisor, detached from this process and its terminal, and wait for its state."""
    log = paths.log_file("supervisor")
    log.parent.mkdir(parents=True, exist_ok=True)
    # OVERNIGHT_CPU is meant for this run, not for the worker that it happens to start.
    env = {k: v for k, v in os.environ.items() if keep or k != "OVERNIGHT_CPU"}
    with log.open("ab") as out:
        command = [sys.executable, "-m", "overnight.services", str(IDLE_TIMEOUT_S)]
        process = subprocess.Popen(
            command,
            cwd=paths.root(),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    until = time.monotonic() + PATIENCE_S
    while not read_state():
        if process.poll() is not None or time.monotonic() > until:
            raise ServiceError(f"the supervisor did not start: {tail(log)}")
        time.sleep(0.05)


def _wait(names: set[str]) -> None:
    """Wait until those of *names* that are ours are ready, and the others answer. Raises ServiceError."""
    now = settings()
    _check_theirs(now)
    wanted = names & {s.name for s in services(now)}
    until, starts = time.monotonic() + PATIENCE_S, 0
    while wanted:
        rows: list[dict[str, Any]] = [r for r in read_state().get("rows", []) if r["service"] in wanted]
        failed = [r for r in rows if r["state"] == "failed"]
        if failed:
            raise ServiceError([_complain(r) for r in failed])
        if rows and all(r["state"] == "ready" for r in rows):
            return
        if locks.holder(supervisor_lock()) is None:
            starts += 1
            if starts > STARTS or not (keep_file().exists() or locks.users(users_folder())):
                raise ServiceError(
                    "the supervisor has ended while it was waited for; "
                    f"its log ends with: {tail(paths.log_file('supervisor'))}"
                )
            _start(keep=keep_file().exists())
        if time.monotonic() > until:
            waiting = [r["service"] for r in rows if r["state"] != "ready"]
            raise ServiceError(
                f"{', '.join(waiting)}: not ready after {PATIENCE_S:.0f} s; "
                f"see {paths.shown(paths.log_file(waiting[0]))}"
            )
        time.sleep(0.05)


def _check_theirs(now: Settings) -> None:
    problems = []
    if not now.own_prefect and not answers(f"{now.prefect}/health"):
        problems.append(f"PREFECT_API_URL={now.prefect}: gives no answer; {REMEDY}")
    if not now.own_mlflow and now.mlflow.startswith("http") and not answers(f"{now.mlflow}/health"):
        problems.append(f"MLFLOW_TRACKING_URI={now.mlflow}: gives no answer; {REMEDY}")
    if problems:
        raise ServiceError(problems)


def _complain(row: dict[str, Any]) -> str:
    note = str(row["note"])
    return note if note.startswith(row["service"]) else f"{row['service']}: {note}"


def _end(pids: Sequence[int]) -> None:
    """Send TERM, leave time for a checkpoint, then send KILL; the processes end their own children."""
    stop([process for process in map(Process.of, pids) if process], RUN_GRACE_S)


def _row(saved: dict[str, Any], alive: bool) -> Row:
    state, pid = saved["state"], saved["pid"]
    if not alive:  # the supervisor was killed: its last state is outdated
        left = pid is not None and Process(pid, saved["started"]).alive()
        state, pid = ("left behind", pid) if left else ("down", None)
    since = _clock(saved["since"]) if state != "down" else ""
    return Row(
        service=saved["service"],
        state=state,
        address=saved["address"],
        pid=pid,
        since=since,
        note=saved["note"],
    )


def _missing(name: str, address: str) -> Row:
    return Row(service=name, state="down", address=address, pid=None, since="", note="")


def _theirs(name: str, address: str, variable: str) -> Row:
    return Row(
        service=name, state="not ours", address=address, pid=None, since="", note=f"named by ${variable}"
    )


def _clock(at: float) -> str:
    """The hour alone when it was today."""
    moment, today = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if moment[:3] == today[:3] else "%Y-%m-%d %H:%M", moment)
