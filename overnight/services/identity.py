"""Who runs a run, in words that outlive the process: host, state folder, boot, pid and its start. They stand in MLflow's tags and Prefect's labels."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from overnight import paths
from overnight.processes import Process, boot

FIELDS = ("host", "state", "boot", "pid", "started")


@dataclass(frozen=True)
class Identity:
    """One process of one checkout on one machine. `started`: clock ticks after the boot, which no change of a clock touches."""

    host: str
    state: str
    boot: str
    pid: int
    started: str

    @classmethod
    def mine(cls) -> Self:
        """Of this process."""
        me = Process.of(os.getpid())
        ticks = me.started.partition(" ")[2] if me else ""
        return cls(socket.gethostname(), str(paths.state()), boot(), os.getpid(), ticks)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self | None:
        """From tags or labels; None when they are not those of a run of ours."""
        values = {name: str(said.get(f"overnight.{name}", "")) for name in FIELDS}
        if not values["host"] or not values["state"] or not values["pid"].isdecimal():
            return None
        return cls(values["host"], values["state"], values["boot"], int(values["pid"]), values["started"])

    def words(self) -> dict[str, str]:
        """As tags or labels."""
        return {f"overnight.{name}": str(getattr(self, name)) for name in FIELDS}

    def ours(self) -> bool:
        """Whether this checkout on this machine started it: nobody else's run is ever closed."""
        return self.host == socket.gethostname() and self.state == str(paths.state())

    def alive(self) -> bool:
        """Whether the process is there. Where its start is not in ticks (another version wrote it), the pid has to do."""
        if self.boot != boot():
            return False
        there = Process.of(self.pid)
        return (
            there is not None
            and there.alive()
            and (there.started == f"{self.boot} {self.started}" or not self.started.isdecimal())
        )

    def obituary(self, last: float = 0.0) -> str:
        """What became of it, as far as it can be known; last: when it gave its last sign of life, 0 if nobody saw it."""
        when = f", last seen alive {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(last))}" if last else ""
        if self.boot != boot():
            return f"the machine went down or was started again{when}"
        return f"its process (pid {self.pid}) is gone: killed or broken down{when}"
