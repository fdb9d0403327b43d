"""Monitor a step while it runs: the card ten times a second, the host every 5 s.

Metrics have the names that MLflow knows.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from overnight.errors import DiskFull
from overnight.gpu import timeline
from overnight.gpu.card import Card
from overnight.gpu.device_usage import (
    Device,
    device_of,
    holders,
    other_processes,
    over_reserve_mib,
    reported_mib,
)
from overnight.gpu.lease import Lease
from overnight.gpu.ledger.entries import Request
from overnight.gpu.memory_limit import MemoryLimit

REPORT_S = 5.0
SAMPLE_S = 0.1
REREAD_EVERY = 6  # samples, after which the reports of other holders are read again
JOIN_S = 5.0
MIN_CHANGE_MIB = 1.0  # of this step's use, to be reported to others
MIN_NAMED_MIB = 64  # of other processes, to ask for their names
PREEMPT_AFTER = 20  # samples in a row, ten a second: what is gone after two seconds is no reason
MIB_TO_MB = 1.048576


class RunLog(Protocol):
    """What the monitor writes to; a Run is one. reports: how many reports earlier attempts have logged."""

    reports: int

    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def note(self, text: str) -> None: ...


@contextmanager
def watch(
    run: RunLog,
    card: Card,
    lease: Lease | None = None,
    limit: MemoryLimit | None = None,
    device: Device | None = None,
    join_s: float = JOIN_S,
) -> Iterator["Monitor"]:
    """Monitor the host, and with a lease the card, while the block runs.

    device: asked for the card's figures; join_s: how long to wait for a driver that hangs when the block has
    ended.
    """
    monitor = Monitor(run, card, lease, limit, device)
    monitor.sample()  # before the step takes anything of the card
    if lease is not None:
        monitor.report({})  # the moment of the grant
    thread = threading.Thread(target=monitor.loop, daemon=True, name="monitor")
    thread.start()
    try:
        yield monitor
    finally:
        monitor.end()
        thread.join(join_s)
        if not thread.is_alive():
            monitor.close()


class Monitor:
    """Samples the card (`sample`) and logs the maxima (`report`).

    `loop` does both at their times, in its own thread.

    device_peak_mib: the most that the card held beyond what other steps reported and what other processes
    used at first; None while this step reports no use. other_processes_peak_mib: the most that processes
    without a lease held. cpu_s: CPU time of the thread.
    """

    def __init__(
        self,
        run: RunLog,
        card: Card,
        lease: Lease | None,
        limit: MemoryLimit | None,
        device: Device | None = None,
        reread_every: int = REREAD_EVERY,
    ) -> None:
        self.run = run
        self.card = card
        self.lease = lease
        self.limit = limit
        self.device = device or device_of(card)
        self.preemption = PreemptionPolicy(card, lease.ticket) if lease and card.policy == "yield" else None
        self.device_peak_mib: float | None = None
        self.other_processes_peak_mib: float | None = None
        self.cpu_s = 0.0
        self.maxima = dict[str, float]()  # since the last report
        self._ending = threading.Lock()  # cheaper to wait for than an event, ten times a second
        self._ending.acquire()
        self._pid = os.getpid()
        self._reports = run.reports
        self._problem = ""
        self._samples = 0
        self._reread_every = reread_every
        # this step's own use: as last reported, at which sample, how many samples apart, and the peak
        self._reported: tuple[float, float] | None = None
        self._reported_at = -reread_every
        self._report_every = max(1, reread_every // 2)
        self._peak = 0.0
        self._leases = _Leases([])
        # a neighbour's new memory looks foreign until its report was written and read: only what stays counts
        self._recent = deque[int](maxlen=reread_every + self._report_every + 1)
        self._first: int | None = None

    def loop(self) -> None:
        """Run until `end`; `close` reports the rest."""
        host = _Host()
        due = time.monotonic() + 0.5
        while not self._ending.acquire(timeout=SAMPLE_S if self.lease else max(0.0, due - time.monotonic())):
            self.sample()
            if time.monotonic() >= due:
                self.report(host.metrics())
                due = time.monotonic() + REPORT_S
        self.cpu_s = time.thread_time()

    def end(self) -> None:
        """Let the loop end, now."""
        self._ending.release()

    def close(self) -> None:
        """Report the rest; of a step that took less than a tenth of a second, everything."""
        self.sample()
        if self.maxima:
            self.report({})

    def summary(self) -> dict[str, float | None]:
        """Fields of the step's result."""
        return {
            "device_peak_mib": self.device_peak_mib,
            "other_processes_peak_mib": self.other_processes_peak_mib,
        }

    def preemption_reason(self) -> str:
        """Why this step should give the card back; empty while it need not."""
        return self.preemption.reason if self.preemption else ""

    def sample(self) -> None:
        """Sample the card once: report this step's use to the ledger, keep the maxima."""
        if self.lease is None:
            return
        if self._samples % self._reread_every == 0:
            self._leases = _Leases(holders(self.card))
        self._samples += 1
        own_mib = self._report_own(self.lease)
        used_mib = self.device.used_mib(self.card, self._leases.held)
        others_mib = self._other_processes(used_mib)
        if self.preemption:
            self.preemption.observe(self._leases.held, others_mib)
        self._keep_maximum("used", used_mib)
        self._keep_maximum("leased", self._leases.leased_mib)
        self._keep_maximum("own", own_mib)
        if others_mib is not None:
            self._keep_maximum("other_processes", others_mib)
        if self.device.problem:
            self._note_problem(self.device.problem)

    def _keep_maximum(self, name: str, value: float) -> None:
        self.maxima[name] = max(value, self.maxima.get(name, 0.0))

    def _report_own(self, lease: Lease) -> float:
        """Report this step's use to the ledger when it has changed.

        Returns its maximum since the last sample, context included.
        """
        if self.limit is None:
            return 0.0
        use = self.limit.use_mib()
        peak = self.limit.peak_mib() + self.limit.overhead_mib
        rose = peak > self._peak
        self._peak = max(peak, self._peak)
        if peak > 0:  # without a meter there is nothing to report
            for request in self._leases.own:
                request.owner["use_mib"] = use  # read from its file, so no other thread has it
            if self._samples - self._reported_at >= self._report_every and self._has_changed(use, peak):
                self._reported = (use, peak)
                self._reported_at = self._samples
                lease.update(use_mib=round(use, 1), peak_mib=round(peak, 1))
        return peak if rose else use

    def _has_changed(self, use: float, peak: float) -> bool:
        if self._reported is None:
            return True
        return max(abs(use - self._reported[0]), abs(peak - self._reported[1])) > MIN_CHANGE_MIB

    def _other_processes(self, used_mib: int) -> int | None:
        """What processes without a lease use, of `used_mib` on the whole card; None until that is known."""
        now = max(0, used_mib - self._leases.others_mib - sum(map(reported_mib, self._leases.own)))
        self._recent.append(now)
        self._first = now if self._first is None else min(self._first, now)
        if self._reported is not None:
            own = used_mib - self._leases.others_mib - self._first
            self.device_peak_mib = max(self.device_peak_mib or 0, own)
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        steady = min(self._recent)
        self.other_processes_peak_mib = max(self.other_processes_peak_mib or 0, steady)
        return steady

    def _note_problem(self, problem: str) -> None:
        """Note once that the card does not answer; its last known values stand."""
        if not self._problem:
            with suppress(OSError, DiskFull):
                self.run.note(f"the card does not say what it uses ({problem}); the last known values stand")
        self._problem = self._problem or problem

    def report(self, host: dict[str, float]) -> None:
        """Log the host's metrics and the card's maxima since the last report.

        Add a line to the card's timeline.
        """
        card = {f"card/{name}_mib": value for name, value in self.maxima.items()}
        with suppress(OSError, DiskFull):  # a disk that was full for a moment must not end the monitor
            self.run.metrics({**host, **self._device_metrics(), **card}, self._reports)
        self._reports += 1
        if self.lease is not None and self.maxima:
            timeline.append(self.card, self._point(self.lease))
        self.maxima = {}

    def _device_metrics(self) -> dict[str, float]:
        """Under the names of MLflow's page of system metrics."""
        if self.card.virtual:
            return {}
        used_mib = self.maxima.get("used") or self.device.used_mib(self.card, [])
        load = self.device.load_percent(self.card)
        prefix = f"system/gpu_{self.card.index}"
        found = {
            f"{prefix}_memory_usage_megabytes": used_mib * MIB_TO_MB,
            f"{prefix}_memory_usage_percentage": 100 * used_mib / self.card.total_mib,
        }
        return found if load is None else {**found, f"{prefix}_utilization_percentage": load}

    def _point(self, lease: Lease) -> timeline.Point:
        held = holders(self.card)
        owner: dict[str, Any] = next((r.owner for r in held if r.pid == self._pid), {})
        others_mib = self.maxima.get("other_processes", 0)
        named = other_processes(self.card, held, self.device) if others_mib >= MIN_NAMED_MIB else []
        return timeline.Point(
            at=round(time.time(), 1),
            experiment=str(owner.get("experiment", "")),
            step=str(owner.get("step", "")),
            pid=self._pid,
            lease_mib=lease.mib,
            leased_mib=int(self.maxima["leased"]),
            own_mib=round(self.maxima["own"], 1),
            used_mib=int(self.maxima["used"]),
            other_processes_mib=int(others_mib),
            other_processes=tuple(dict.fromkeys(p.name for p in named))[:5],
        )


class _Leases:
    """All leases of the card, as last read: those of this process, and what the others report to use."""

    def __init__(self, held: list[Request]) -> None:
        pid = os.getpid()
        self.held = held
        self.own = [r for r in held if r.pid == pid]
        self.leased_mib = sum(r.mib for r in held)
        self.others_mib = sum(reported_mib(r) for r in held if r.pid != pid)


class PreemptionPolicy:
    """When a lease holder gives the card back to other processes: the policy `yield`.

    The youngest ticket goes first: a holder stays as long as its own lease and those of the older ones fit
    beside what other processes use. reason: why this holder should go, empty while it need not.
    """

    def __init__(self, card: Card, ticket: int, samples: int = PREEMPT_AFTER) -> None:
        self.card = card
        self.ticket = ticket
        self.samples = samples
        self.reason = ""
        self._in_a_row = 0

    def observe(self, held: Sequence[Request], others_mib: int | None) -> None:
        """Take one sample: the holders, and what other processes use, None while that is unknown."""
        if others_mib is None:
            return
        overuse = over_reserve_mib(self.card, others_mib)
        leases = sum(r.mib for r in held if r.ticket <= self.ticket)
        self._in_a_row = self._in_a_row + 1 if overuse + leases > self.card.budget_mib else 0
        if self._in_a_row >= self.samples:
            self.reason = (
                f"other programs use {overuse} of the card's {self.card.budget_mib} MiB, which leaves no "
                "room for this lease: it is given back, and asked for again at the head of the line"
            )


class _Host:
    """The metrics of the host and this process."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()

    def metrics(self) -> dict[str, float]:
        import psutil

        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
