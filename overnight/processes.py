"""Processes known by pid and start time, so that a reused pid is never taken for the process that had it."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import psutil

from overnight import paths

STEP_MARK = "OVERNIGHT_STEP"  # variable in the environment of a step's process, and so of all that it starts
KEPT = "OVERNIGHT_PROXIES"
PROXIES = {
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "ssl_cert_file", "ssl_cert_dir", "requests_ca_bundle", "curl_ca_bundle",
    "prefect_api_ssl_cert_file", "prefect_api_tls_insecure_skip_verify",
    "prefect_api_auth_string", "prefect_server_api_auth_string",
    "mlflow_tracking_insecure_tls", "mlflow_tracking_server_cert_path", "mlflow_tracking_client_cert_path",
}  # fmt: skip
FIELDS = ("host", "state", "boot", "pid", "started")
LOG_BYTES = 10 << 20
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def user_name() -> str:
    """Of this process's user: a number where the machine, such as a container, knows no name."""
    return str(psutil.Process().username())


def without_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Without proxies and certificates, which servers of this machine need not; the steps get them back."""
    found = {name: value for name, value in env.items() if name.lower() in PROXIES}
    kept = {name: value for name, value in env.items() if name not in found}
    return {**kept, KEPT: json.dumps(found)} if found.keys() - {"NO_PROXY", "no_proxy"} else kept


def with_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """The same environment with what `without_proxies` has taken from it."""
    kept = dict(env)
    return {**kept, **json.loads(kept.pop(KEPT, "{}"))}


@dataclass(frozen=True)
class Process:
    pid: int
    started: str  # boot id and clock ticks since the boot: setting the clock does not change it

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        stat = _stat(pid)
        return cls(pid, stat[1]) if stat else None

    def alive(self) -> bool:
        """Whether it still runs and is no zombie."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started and stat[0] not in "ZX"

    def signal(self, number: int) -> None:
        """Send a signal to this process alone, not to its group."""
        if self.alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def children(self) -> "list[Process]":
        try:
            pids = [p.pid for p in psutil.Process(self.pid).children()] if self.alive() else []
        except psutil.NoSuchProcess:
            return []
        return [process for process in map(Process.of, pids) if process]


def _stat(pid: int) -> tuple[str, str] | None:
    """(state, start) of a process, None when there is none (proc(5), fields after the name in brackets)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], f"{boot()} {fields[19]}"


@cache
def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def environment_of(pid: int) -> dict[str, str]:
    """Empty when the process is gone or belongs to another user."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


@dataclass(frozen=True)
class Identity:
    """The process that runs a run, as MLflow's tags and Prefect's labels name it.

    `state`: the checkout's state folder; `started`: clock ticks after the boot.
    """

    host: str
    state: str
    boot: str
    pid: int
    started: str

    @classmethod
    def mine(cls) -> Self:
        me = Process.of(os.getpid())
        ticks = me.started.partition(" ")[2] if me else ""
        return cls(socket.gethostname(), str(paths.state()), boot(), os.getpid(), ticks)

    @classmethod
    def from_tags(cls, tags: Mapping[str, Any]) -> Self | None:
        """None when they are not those of a run of this program."""
        values = {name: str(tags.get(f"overnight.{name}", "")) for name in FIELDS}
        if not values["host"] or not values["state"] or not values["pid"].isdecimal():
            return None
        return cls(values["host"], values["state"], values["boot"], int(values["pid"]), values["started"])

    def tags(self) -> dict[str, str]:
        return {f"overnight.{name}": str(getattr(self, name)) for name in FIELDS}

    def ours(self) -> bool:
        """Runs of other checkouts and machines must never be closed."""
        return self.host == socket.gethostname() and self.state == str(paths.state())

    def alive(self) -> bool:
        return Process(self.pid, f"{self.boot} {self.started}").alive()

    def death_reason(self, last_seen: float = 0.0) -> str:
        """For people; last_seen: unix time of its last sign of life, 0 if unknown."""
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last_seen))
        when = f", last seen alive {clock}" if last_seen else ""
        if self.boot != boot():
            return f"the machine went down or was started again{when}"
        return f"its process (pid {self.pid}) is gone: killed or broken down{when}"


def stop(processes: Sequence[Process], grace_s: float, tick: Callable[[], object] = lambda: None) -> None:
    """Send TERM to all, and KILL to those that still run after the grace; `tick` is called while waiting."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for process in processes:
            process.signal(number)
        until = time.monotonic() + wait_s
        while any(p.alive() for p in processes) and time.monotonic() < until:
            time.sleep(0.05)
            tick()


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """In a child: the kernel sends it this signal when its parent ends.

    Exits at once when that is gone already.
    """
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def start_python(
    arguments: Sequence[str], log: Path, env: Mapping[str, str], stays: bool = False
) -> "subprocess.Popen[bytes]":
    """In the checkout and in a session of its own; output is appended to `log`.

    It gets SIGTERM when this process ends, unless it `stays`. A log that has become long is put aside once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.is_file() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".1.log"))
    die = None if stays else partial(die_with_parent, os.getpid(), signal.SIGTERM)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=paths.root(),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die,  # noqa: PLW1509 - the supervisor has one thread
        )


def step_mark(folder: Path) -> str:
    me = Process.of(os.getpid())
    return f"{os.getpid()}|{me.started if me else ''}|{folder}"


def kill_step_processes(folder: Path | None = None) -> list[int]:
    """Kill what steps of this checkout started, also after setsid; their pids.

    folder: of the step; None: every step whose owner, the process that ran it, has died.
    """
    killed = []
    for pid in psutil.pids():
        owner, _, rest = environment_of(pid).get(STEP_MARK, "").partition("|")
        started, _, step = rest.partition("|")
        if pid == os.getpid() or not step or not Path(step).is_relative_to(paths.steps()):
            continue
        if step == str(folder) if folder else not Process(int(owner), started).alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    return killed


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def port_listener(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.pid and found.status == psutil.CONN_LISTEN and found.laddr.port == port:
                return f"pid {found.pid}: {' '.join(psutil.Process(found.pid).cmdline())[:120]}"
    return "a process of another user, or one that cannot be read"
