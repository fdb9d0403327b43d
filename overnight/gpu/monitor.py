"""Monitor a step while it runs: the card ten times a second, the host every 5 s."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from overnight.best_effort import best_effort
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
    """A Run. reports: how many reports earlier attempts have logged."""

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

    join_s: how long to wait for a driver that hangs when the block has ended.
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
    """Samples the card (`sample`) and logs the maxima (`report`); neither raises. cpu_s: of its thread."""

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
        self.device = device or device_of(card)
        self.preemption = PreemptionPolicy(card, lease.ticket) if lease and card.policy == "yield" else None
        self.own = _OwnUse(limit, max(1, reread_every // 2))
        self.others = _OtherUse(reread_every + self.own.every + 1)
        self.cpu_s = 0.0
        self.maxima = dict[str, float]()  # since the last report
        self._held = list[Request]()  # all leases of the card, as last read
        self._reread_every = reread_every
        self._samples = 0
        self._reports = run.reports
        self._problem = ""
        self._ending = threading.Event()

    def loop(self) -> None:
        host = _Host()
        due = time.monotonic() + 0.5
        while not self._ending.wait(SAMPLE_S if self.lease else max(0.0, due - time.monotonic())):
            self.sample()
            if time.monotonic() >= due:
                self.report(host.metrics())
                due = time.monotonic() + REPORT_S
        self.cpu_s = time.thread_time()

    def end(self) -> None:
        self._ending.set()

    def close(self) -> None:
        """Report the rest; of a step that took less than a tenth of a second, everything."""
        self.sample()
        if self.maxima:
            self.report({})

    def summary(self) -> dict[str, float | None]:
        """Fields of the step's result.

        device_peak_mib: the most that the card held beyond what other steps reported and what other processes
        used at first; None while this step reports no use.
        """
        return {
            "device_peak_mib": self.others.device_peak_mib,
            "other_processes_peak_mib": self.others.peak_mib,
        }

    def preemption_reason(self) -> str:
        """Why this step should give the card back; empty while it need not."""
        return self.preemption.reason if self.preemption else ""

    def sample(self) -> None:
        if self.lease is not None:
            with best_effort(self._note_problem):
                self._sample(self.lease)

    def _sample(self, lease: Lease) -> None:
        if self._samples % self._reread_every == 0:
            self._held = holders(self.card)
        self._samples += 1
        own_mib = self.own.report(lease, self._held)
        used_mib = self.device.used_mib(self.card, self._held)
        others_mib = self.others.observe(used_mib, self._held, self.own.reported is not None)
        if self.preemption:
            self.preemption.observe(self._held, others_mib)
        self._keep("used", used_mib)
        self._keep("leased", sum(r.mib for r in self._held))
        self._keep("own", own_mib)
        if others_mib is not None:
            self._keep("other_processes", others_mib)
        if self.device.problem:
            self._note_problem(self.device.problem)

    def _keep(self, name: str, value: float) -> None:
        self.maxima[name] = max(value, self.maxima.get(name, 0.0))

    def _note_problem(self, problem: str) -> None:
        if self._problem:
            return
        self._problem = problem
        with best_effort():
            self.run.note(f"the card does not say what it uses ({problem}); the last known values stand")

    def report(self, host: dict[str, float]) -> None:
        with best_effort(self._note_problem):
            self._report(host)
        self.maxima = {}

    def _report(self, host: dict[str, float]) -> None:
        is_counted = not self.card.virtual or self.card.count
        card = {f"system/card_{name}_mib": value for name, value in self.maxima.items() if is_counted}
        values = {**host, **self._device_metrics(), **card}
        if values:
            with suppress(OSError, DiskFull):  # a disk that was full for a moment must not end the monitor
                self.run.metrics(values, self._reports)
            self._reports += 1
        if self.lease is not None and self.maxima:
            timeline.append(self.card, self._point(self.lease))

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
        owner = lease.grant.owner
        others_mib = self.maxima.get("other_processes", 0)
        named = other_processes(self.card, self._held, self.device) if others_mib >= MIN_NAMED_MIB else []
        return timeline.Point(
            at=round(time.time(), 1),
            experiment=str(owner.get("experiment", "")),
            step=str(owner.get("step", "")),
            pid=os.getpid(),
            lease_mib=lease.mib,
            leased_mib=int(self.maxima["leased"]),
            own_mib=round(self.maxima["own"], 1),
            used_mib=int(self.maxima["used"]),
            other_processes_mib=int(others_mib),
            other_processes=tuple(dict.fromkeys(p.name for p in named))[:5],
        )


class _OwnUse:
    """What this step uses. every: samples between two reports to the ledger, at least."""

    def __init__(self, limit: MemoryLimit | None, every: int) -> None:
        self.limit = limit
        self.every = every
        self.reported: tuple[float, float] | None = None  # use and peak
        self._since = every  # samples since the last report
        self._peak = 0.0

    def report(self, lease: Lease, held: Sequence[Request]) -> float:
        """Report a changed use to the ledger and in `held`; its maximum since the last sample."""
        if self.limit is None:
            return 0.0
        use = self.limit.use_mib()
        peak = self.limit.peak_mib() + self.limit.overhead_mib
        rose = peak > self._peak
        self._peak = max(peak, self._peak)
        self._since += 1
        if peak > 0:  # without a meter there is nothing to report
            for request in _own(held):
                request.owner["use_mib"] = use  # read from its file, so no other thread has it
            if self._since >= self.every and self._has_changed(use, peak):
                self.reported = (use, peak)
                self._since = 0
                lease.update(use_mib=round(use, 1), peak_mib=round(peak, 1))
        return peak if rose else use

    def _has_changed(self, use: float, peak: float) -> bool:
        if self.reported is None:
            return True
        return max(abs(use - self.reported[0]), abs(peak - self.reported[1])) > MIN_CHANGE_MIB


class _OtherUse:
    """What processes without a lease use.

    A neighbour's new memory looks like theirs until its report was read: only what stays for a window of
    samples counts.
    """

    def __init__(self, window: int) -> None:
        self.peak_mib: float | None = None
        self.device_peak_mib: float | None = None
        self._recent = deque[int](maxlen=window)
        self._first: int | None = None

    def observe(self, used_mib: int, held: Sequence[Request], own_is_reported: bool) -> int | None:
        """What they use of `used_mib` on the whole card; None until that is known."""
        own_mib = sum(map(reported_mib, _own(held)))
        neighbours_mib = sum(map(reported_mib, held)) - own_mib
        now = max(0, used_mib - neighbours_mib - own_mib)
        self._recent.append(now)
        self._first = now if self._first is None else min(self._first, now)
        if own_is_reported:
            self.device_peak_mib = max(self.device_peak_mib or 0, used_mib - neighbours_mib - self._first)
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        steady = min(self._recent)
        self.peak_mib = max(self.peak_mib or 0, steady)
        return steady


def _own(held: Sequence[Request]) -> list[Request]:
    return [r for r in held if r.pid == os.getpid()]


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
        """others_mib: None while that is unknown."""
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
