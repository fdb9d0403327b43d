"""Starts `python -m overnight.tracking.upload` when a run that is gone has left something to tell MLflow; again and again, ever more rarely, while a server is away."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

from overnight import paths
from overnight.processes import die_with_parent
from overnight.services.settings import environment, log_file
from overnight.tracking import backlog

AGAIN_S = 20.0
MOST_S = 900.0


class Collector:
    """At most one such process at a time; it dies with the supervisor."""

    def __init__(self) -> None:
        self.popen: subprocess.Popen[bytes] | None = None
        self.failures, self.next = 0, 0.0

    def look(self) -> list[str]:
        """Start one when there is something to do; what was done, a line for each."""
        if self.popen is not None and self.popen.poll() is None:
            return []
        lines = self._ended(self.popen.returncode) if self.popen is not None else []
        found = backlog.debts() if time.monotonic() >= self.next else []
        if found:
            self._start()
            lines.append(f"telling MLflow what {', '.join(step.name for step in found)} has left")
        return lines

    def busy(self) -> bool:
        """Whether one is at work."""
        return self.popen is not None and self.popen.poll() is None

    def _ended(self, code: int) -> list[str]:
        self.popen = None
        self.failures = self.failures + 1 if code else 0
        self.next = time.monotonic() + min(AGAIN_S * 2**self.failures, MOST_S) if code else 0.0
        return [f"MLflow was not told all that runs have left ({log_file('ship')})"] if code else []

    def _start(self) -> None:
        log = log_file("ship")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "overnight.tracking.upload"],
                cwd=paths.root(),
                env={**os.environ, **environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - the supervisor has one thread
            )
