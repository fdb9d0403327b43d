"""The arms of bench/card.py: our ledger in a folder, and bare Prefect servers of their own with one or the
other storage of leases.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STORAGE = "prefect.server.concurrency.lease_storage"
SLOTS = 12
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR"}


@dataclass
class Holder:
    """A process of _holder.py and what it wrote down."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def times(self, word: str) -> list[float]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [float(line.split()[1]) for line in lines if line.startswith(word + " ")]

    def wait_for(self, word: str, until: float) -> float:
        """When it first wrote that; infinity when it did not until then."""
        while not self.times(word):
            if time.monotonic() > until or (self.process.poll() is not None and not self.times(word)):
                return float("inf")
            time.sleep(0.02)
        return self.times(word)[0]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass
class Arm:
    """A process that keeps the card's 12 slots.

    Each case has a limit (a folder) of its own, so that none leaves anything to the next.
    """

    name: str
    folder: Path
    holders: list[Holder] = field(default_factory=list)

    def prepare(self) -> None: ...

    def create(self, limit: str) -> None: ...

    def held(self, limit: str) -> int:
        """Slots that count as taken now."""
        from overnight.gpu.ledger.ledger import Ledger

        return Ledger(self.folder / limit, SLOTS * 1024).held_mib() // 1024

    def start(self, limit: str, **asked: Any) -> Holder:
        """A process that asks for slots of a limit."""
        log = self.folder / f"{limit}-{len(self.holders)}.log"
        words = {
            "arm": "ours",
            "folder": str(self.folder / limit),
            "limit": limit,
            "slots": SLOTS,
            **self.more(),
            **asked,
        }
        command = [sys.executable, str(HERE / "_holder.py"), str(log), json.dumps(words)]
        with log.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                command, env=self.environment(), cwd=self.folder, stdout=errors, stderr=errors
            )
        self.holders.append(Holder(process, log))
        return self.holders[-1]

    def more(self) -> dict[str, Any]:
        return {}

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(HERE.parent)}

    def stop(self) -> None: ...

    def close(self) -> None:
        for holder in self.holders:
            holder.end()


@dataclass
class Prefect(Arm):
    """A server with a home of its own on a port that was free."""

    storage: str = "memory"
    port: int = 0
    server: "subprocess.Popen[bytes] | None" = None

    def prepare(self) -> None:
        """Start the server, or start it again."""
        self.port = self.port or _free_port()
        command = [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--no-ui",
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                command,
                env=self.environment(),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 180
        while not self._answers():
            if time.monotonic() > until or self.server.poll() is not None:
                raise RuntimeError(f"{self.name}: the server did not start; see {self.folder / 'server.log'}")
            time.sleep(0.2)

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        ours = {
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": f"{STORAGE}.{self.storage}",
        }
        return {**kept, **QUIET, **ours, "PYTHONPATH": str(HERE.parent)}

    def more(self) -> dict[str, Any]:
        return {"arm": "prefect"}

    def create(self, limit: str) -> None:
        self._api("v2/concurrency_limits/", {"name": limit, "limit": SLOTS})

    def held(self, limit: str) -> int:
        return int(self._api(f"v2/concurrency_limits/{limit}")["active_slots"])

    def stop(self) -> None:
        """As a person would: TERM, to the server and what it started."""
        if self.server and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGTERM)
            try:
                self.server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.server.pid, signal.SIGKILL)
                self.server.wait()

    def close(self) -> None:
        super().close()
        self.stop()

    def _answers(self) -> bool:
        try:
            return bool(self._api("health"))
        except OSError:
            return False

    def _api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def _free_port() -> int:
    """An odd one."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port % 2:
            return port
