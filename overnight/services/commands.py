"""Start and stop the services, wait for them, and show their state."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from overnight import locks, paths
from overnight.errors import OvernightError, ServiceError
from overnight.processes import Process, start_python, stop
from overnight.services.definitions import NO_WRITES, database_problem, port_problem, services
from overnight.services.foreign import mlflow_problem, prefect_problem, variables_problem
from overnight.services.settings import (
    Settings,
    keep_file,
    read_state,
    request_file,
    settings,
    start_lock,
    state_file,
    supervisor_lock,
    users_folder,
)
from overnight.services.supervisor import RUN_GRACE_S, STOP_S, log_size, tail

PATIENCE_S = 240.0
IDLE_TIMEOUT_S = 60.0  # without users, until the supervisor stops
REMEDY = "put that right, or unset the variable for a server of our own"
WAITS = "what runs log waits in .overnight/steps and is uploaded when it does"
PROBLEMS = ("failed", "unhealthy")
STARTS = 3  # of a supervisor that is killed while it is waited for
EXIT_S = 3.0  # at most, from a kill until the kernel has closed all that the process held
GUARD_S = 3.0  # how often a run checks that its services have a supervisor


Row = dict[str, Any]  # of `overnight status`: service, state, address, pid, since, note


def up() -> None:
    """Start what is missing, keep it until `down`, and register what changed.

    Raises ServiceError; when it says that flows are broken and nothing else, everything else works.
    """
    paths.services().mkdir(parents=True, exist_ok=True)
    _check_theirs(settings())
    _request()
    _start(keep=True)
    _wait({"prefect", "mlflow", "deployments", "worker"})
    broken = [r["note"] for r in read_state().get("rows", []) if r["service"] == "deployments" and r["note"]]
    if broken:
        raise ServiceError(broken)


def down(force: bool = False) -> None:
    paths.services().mkdir(parents=True, exist_ok=True)
    with locks.hold(start_lock(), "overnight down", wait=True):
        users = locks.users(users_folder())
        if users and not force:
            names = "; ".join(map(str, users))
            raise ServiceError(
                f"not stopped, since the services are needed by {names}; "
                "stop that (Ctrl-C there), or use --force"
            )
        keep_file().unlink(missing_ok=True)
        _end([user.pid for user in users if user.pid != os.getpid()])
        supervisor = locks.holder(supervisor_lock())
        if supervisor is not None:
            _end([supervisor.pid])  # which stops its services
        _stop_leftovers()


def _end(pids: Sequence[int]) -> None:
    stop([process for process in map(Process.of, pids) if process], RUN_GRACE_S)


def status() -> list[Row]:
    now = settings()
    alive = locks.holder(supervisor_lock()) is not None  # else its last words are outdated
    saved = {row["service"]: row for row in read_state().get("rows", []) if alive}
    shown = []
    for spec in services(now):
        row = saved.get(spec.name, {"state": "down", "pid": None, "since": 0.0, "note": ""})
        problem = database_problem(spec.database)
        if problem:  # told also when the supervisor cannot write it down
            row = {**row, "state": row["state"].replace("ready", "unhealthy"), "note": problem}
        shown.append(_row(spec.name, row["state"], spec.address, row["pid"], row["since"], row["note"]))
    if not now.own_prefect:
        shown.append(_row("prefect", "not ours", now.prefect, note="named by $PREFECT_API_URL"))
    if not now.own_mlflow:
        shown.append(_row("mlflow", "not ours", now.mlflow, note="named by $MLFLOW_TRACKING_URI"))
    users = locks.users(users_folder())
    return shown + [_row("user", "needs them", "", u.pid, u.since, u.who) for u in users]


def _row(
    service: str, state: str, address: str, pid: int | None = None, since: float = 0.0, note: str = ""
) -> Row:
    at = time.localtime(since)
    form = "%H:%M:%S" if at[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M"
    clock = time.strftime(form, at) if since else ""
    return {"service": service, "state": state, "address": address, "pid": pid, "since": clock, "note": note}


@contextmanager
def ensure(who: str = "") -> Iterator[None]:
    """Prefect's API is up in the block, and MLflow where it can be: what is missing is started.

    Raises ServiceError. What a run logs waits for an MLflow that cannot work.
    """
    _check_theirs(settings())
    with locks.register(users_folder(), who or " ".join(sys.argv)[:120]):
        if settings().own_prefect or settings().own_mlflow:
            _start(keep=False)
        _wait({"prefect", "mlflow"}, can_wait=("mlflow",))
        done = threading.Event()
        threading.Thread(target=_guard, args=(done,), daemon=True, name="services").start()
        try:
            yield
        finally:
            done.set()


def _guard(done: threading.Event) -> None:
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
    paths.services().mkdir(parents=True, exist_ok=True)
    with locks.hold(start_lock(), "a start of the services", wait=True):
        if keep:
            keep_file().touch()
        if locks.holder(supervisor_lock()) is None:
            if not keep:
                keep_file().unlink(missing_ok=True)
            _stop_leftovers()
            _check_ports(settings())
            where = paths.shown(paths.log_file("prefect").parent)
            print(f"starting Prefect and MLflow (logs in {where})", file=sys.stderr, flush=True)
            log = paths.log_file("supervisor")
            begin = log_size(log)
            command = ["-m", "overnight.services", str(IDLE_TIMEOUT_S)]
            process = start_python(command, log, _environment(keep), stays=True)
            until = time.monotonic() + PATIENCE_S
            while not read_state():
                if process.poll() is not None or time.monotonic() > until:
                    raise ServiceError(f"the supervisor did not start: {tail(log, start=begin)}")
                time.sleep(0.05)
        elif any(row["state"] in PROBLEMS for row in read_state().get("rows", [])):
            _request(keep)  # what failed with the environment of somebody else


def _environment(keep: bool) -> dict[str, str]:
    """This process's. OVERNIGHT_CPU is meant for this run, not for the worker that it happens to start."""
    return {k: v for k, v in os.environ.items() if keep or k != "OVERNIGHT_CPU"}


def _request(keep: bool = True) -> None:
    """Ask the supervisor to start what does not run, and to register anew; for this user's eyes alone."""
    part = request_file().with_suffix(f".{os.getpid()}")
    part.touch(mode=0o600)
    part.write_text(json.dumps(_environment(keep)))
    part.replace(request_file())


def _check_ports(now: Settings) -> None:
    problems = _port_problems(now)
    until = time.monotonic() + EXIT_S
    while problems and time.monotonic() < until:  # a process that was killed holds its port until it is gone
        time.sleep(0.1)
        problems = _port_problems(now)
    if problems:
        keep_file().unlink(missing_ok=True)
        raise ServiceError(problems)


def _port_problems(now: Settings) -> list[str]:
    found = [(spec.name, port_problem(spec)) for spec in services(now)]
    return [f"{name}: {problem}" for name, problem in found if problem]


def _stop_leftovers() -> None:
    rows = read_state().get("rows", [])
    stop([Process(row["pid"], row["started"]) for row in rows if row.get("pid")], STOP_S)
    state_file().unlink(missing_ok=True)


def _wait(names: set[str], can_wait: Sequence[str] = ()) -> None:
    """Wait until those of *names* that are ours are ready, but for those that can wait with a problem.

    Raises ServiceError.
    """
    wanted = names & {s.name for s in services(settings())}
    until = time.monotonic() + PATIENCE_S
    starts = 0
    while True:
        saved = [] if request_file().exists() else read_state().get("rows", [])  # outdated until it is taken
        rows: list[Row] = [r for r in saved if r["service"] in wanted]
        problems = {r["service"]: r["note"] for r in rows if _is_lasting(r)}
        if problems.keys() - {*can_wait}:
            raise ServiceError([f"{name}: {note}" for name, note in problems.items()])
        waiting = [r["service"] for r in rows if r["state"] != "ready" and r["service"] not in problems]
        is_late = time.monotonic() > until
        if (rows and not waiting) or not wanted or (is_late and {*waiting} <= {*can_wait}):
            for name in {*problems, *waiting}:
                note = problems.get(name, "not ready")
                print(f"{name} does not work: {note}; {WAITS}", file=sys.stderr, flush=True)
            return
        if locks.holder(supervisor_lock()) is None:
            starts += 1
            if starts > STARTS:
                log = tail(paths.log_file("supervisor"))
                raise ServiceError(
                    f"the supervisor has ended while it was waited for; its log ends with: {log}"
                )
            _start(keep=keep_file().exists())
        if is_late:
            raise ServiceError(
                f"{', '.join(waiting)}: not ready after {PATIENCE_S:.0f} s; "
                f"see {paths.shown(paths.log_file(waiting[0] if waiting else 'supervisor'))}"
            )
        time.sleep(0.05)


def _is_lasting(row: Row) -> bool:
    """Whether a service will not get well by itself; a lack of writes for no reason that is seen may pass."""
    passes = row["state"] == "unhealthy" and row["note"].startswith(NO_WRITES)
    return row["state"] in PROBLEMS and not passes


def _check_theirs(now: Settings) -> None:
    """The user's own servers, before anything is started. Raises ServiceError with the variables' names."""
    if now.own_prefect and now.own_mlflow:
        return
    found = [variables_problem()]
    if not now.own_prefect:
        found.append(prefect_problem(now.prefect))
    if not now.own_mlflow:
        found.append(mlflow_problem(now.mlflow))
    problems = [f"{problem}; {REMEDY}" for problem in found if problem]
    if problems:
        raise ServiceError(problems)
