"""What a step uses while it runs: of the card ten times a second, of the machine every 5 s, under the names that MLflow knows."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from overnight.errors import DiskFull
from overnight.gpu import timeline
from overnight.gpu.card import Card
from overnight.gpu.device_usage import Gauge, gauge, holders, outsiders, said_mib
from overnight.gpu.ledger.entries import Request
from overnight.gpu.preemption import Crowd
from overnight.run import Run

if TYPE_CHECKING:
    from overnight.gpu.lease import Lease
    from overnight.gpu.memory_limit import Cap

EVERY_S = 5.0
LOOK_S = 0.1
WORDS = 6  # looks, after which it is read again what the other holders say
END_S = 5.0
CHANGE_MIB = 1.0  # of a holder's use that is worth telling the others
FOREIGN_MIB = 64  # of programs outside that is worth asking for their names


@contextmanager
def watch(
    run: Run,
    card: Card,
    lease: "Lease | None" = None,
    own: "Cap | None" = None,
    by: Gauge | None = None,
    end_s: float = END_S,
) -> Iterator["Monitor"]:
    """Watch the machine, and with a lease the card, while the block runs.

    by: who is asked what the card holds; end_s: how long a driver that hangs is waited for when the block has ended.
    """
    monitor = Monitor(run, card, lease, own, by)
    monitor.look()  # what the card held before the step took anything of it
    if lease is not None:
        monitor.report({})  # the moment of the grant
    thread = threading.Thread(target=monitor.loop, daemon=True, name="monitor")
    thread.start()
    try:
        yield monitor
    finally:
        monitor.end()
        thread.join(end_s)
        if not thread.is_alive():
            monitor.close()


class Monitor:
    """Looks at the card (`look`) and says what it saw (`report`); `loop` does both at their times, in a thread of its own.

    device_peak_mib: the most that the card held beyond what other steps said and what was foreign at first, None while this step does
    not say what it uses; foreign_peak_mib: the most that programs without a lease held; cpu_s: what the thread took.
    """

    def __init__(
        self,
        run: Run,
        card: Card,
        lease: "Lease | None",
        own: "Cap | None",
        by: Gauge | None = None,
        words_every: int = WORDS,
    ) -> None:
        self.run, self.card, self.lease, self.own, self.by = run, card, lease, own, by or gauge(card)
        self._alarm = threading.Lock()  # which costs less to wait for than an event, ten times a second
        self._alarm.acquire()
        self.device_peak_mib: float | None = None
        self.foreign_peak_mib: float | None = None
        self.cpu_s = 0.0
        self.most = dict[str, float]()  # since the last report
        self._told: tuple[float, float] | None = None
        self._spoke, self._pace = (
            -words_every,
            max(1, words_every // 2),
        )  # the look at which it was told, and looks from then to the next
        self._peak = 0.0
        self._first: int | None = None
        self.crowd = Crowd(card, lease.ticket) if lease and card.policy == "yield" else None
        self._every, self._looks = words_every, 0
        self._held, self._mine = list[Request](), list[Request]()  # all who hold, and of these who runs here
        self._leased = self._others = 0  # MiB: of all leases, and what the others say they use
        # a neighbour's new memory is foreign until it has said so and that was read: only what stays for longer counts
        self._foreign = deque[int](maxlen=words_every + self._pace + 1)
        self._steps, self._problem, self._pid = run.reports, "", os.getpid()

    def loop(self) -> None:
        """Until `end`; what was not yet reported then is reported by `close`."""
        machine = _Machine()
        due = time.monotonic() + 0.5
        while not self._alarm.acquire(timeout=LOOK_S if self.lease else max(0.0, due - time.monotonic())):
            self.look()
            if time.monotonic() >= due:
                self.report(machine.values())
                due = time.monotonic() + EVERY_S
        self.cpu_s = time.thread_time()

    def end(self) -> None:
        """Let the loop end, now."""
        self._alarm.release()

    def close(self) -> None:
        """The last of it, and all of a step that took less than a tenth of a second."""
        self.look()
        if self.most:
            self.report({})

    def facts(self) -> dict[str, float | None]:
        """For the step's result."""
        return {"device_peak_mib": self.device_peak_mib, "foreign_peak_mib": self.foreign_peak_mib}

    def look(self) -> None:
        """One look at the card: tell the ledger what this step uses, keep the most of everything."""
        if self.lease is None:
            return
        if self._looks % self._every == 0:
            self._listen()
        self._looks += 1
        own = self._tell(self.lease)
        used = self.by.used_mib(self.card, self._held)
        foreign = self._outside(used)
        if self.crowd:
            self.crowd.see(self._held, foreign)
        for name, value in (("used", used), ("leased", self._leased), ("own", own), ("foreign", foreign)):
            if value is not None and value >= self.most.get(name, 0.0):
                self.most[name] = value
        if self.by.problem:
            self._complain(self.by.problem)

    def _listen(self) -> None:
        """Who holds, and what they say."""
        self._held = holders(self.card)
        self._mine = [r for r in self._held if r.pid == self._pid]
        self._leased = sum(r.mib for r in self._held)
        self._others = sum(said_mib(r) for r in self._held if r.pid != self._pid)

    def _tell(self, lease: "Lease") -> float:
        """What this step has of the card, the context included; the most of it since the last look."""
        if self.own is None:
            return 0.0
        use, peak = self.own.use_mib(), self.own.peak_mib() + self.own.overhead_mib
        rose, self._peak = peak > self._peak, max(peak, self._peak)
        if peak > 0:  # one who counts nothing says nothing
            for mine in self._mine:
                mine.who["use_mib"] = use  # read from its file, so nobody else's
            if self._looks - self._spoke >= self._pace and self._news(use, peak):
                self._told, self._spoke = (use, peak), self._looks
                lease.tell(use_mib=round(use, 1), peak_mib=round(peak, 1))
        return peak if rose else use

    def _news(self, use: float, peak: float) -> bool:
        """Whether the others should hear of it."""
        return self._told is None or max(abs(use - self._told[0]), abs(peak - self._told[1])) > CHANGE_MIB

    def _outside(self, used: int) -> int | None:
        """What programs without a lease use, of *used* on the whole card; None until that is known."""
        now = max(0, used - self._others - sum(map(said_mib, self._mine)))
        self._foreign.append(now)
        foreign = min(self._foreign) if len(self._foreign) == self._foreign.maxlen else None
        self._first = now if self._first is None else min(self._first, now)
        if self._told is not None:
            self.device_peak_mib = max(self.device_peak_mib or 0, used - self._others - self._first)
        if foreign is not None:
            self.foreign_peak_mib = max(self.foreign_peak_mib or 0, foreign)
        return foreign

    def _complain(self, problem: str) -> None:
        """A card that does not answer is said once; its last known values stand."""
        if not self._problem:
            with suppress(OSError, DiskFull):
                self.run.note(f"the card does not say what it uses ({problem}); the last known values stand")
        self._problem = self._problem or problem

    def report(self, machine: dict[str, float]) -> None:
        """Log the machine's figures and the most of the card's since the last time, and add a line to the card's timeline."""
        card = {f"card/{name}_mib": value for name, value in self.most.items()}
        with suppress(OSError, DiskFull):  # a disk that was full for a moment must not end the watch
            self.run.metrics({**machine, **self._device(), **card}, self._steps)
        self._steps += 1
        if self.lease is not None and self.most:
            timeline.append(self.card, self._point(self.lease))
        self.most = {}

    def _device(self) -> dict[str, float]:
        """Under the names of MLflow's page of system metrics."""
        if self.card.virtual:
            return {}
        used, load = self.most.get("used") or self.by.used_mib(self.card, []), self.by.load_percent(self.card)
        prefix = f"system/gpu_{self.card.index}"
        found = {
            f"{prefix}_memory_usage_megabytes": used * 1.048576,
            f"{prefix}_memory_usage_percentage": 100 * used / self.card.total_mib,
        }
        return found if load is None else {**found, f"{prefix}_utilization_percentage": load}

    def _point(self, lease: "Lease") -> timeline.Point:
        held = holders(self.card)
        who: dict[str, Any] = next((r.who for r in held if r.pid == self._pid), {})
        names = (
            [p.name for p in outsiders(self.card, held, self.by)]
            if self.most.get("foreign", 0) >= FOREIGN_MIB
            else []
        )
        return timeline.Point(
            at=round(time.time(), 1),
            experiment=str(who.get("experiment", "")),
            step=str(who.get("step", "")),
            pid=self._pid,
            lease_mib=lease.mib,
            leased_mib=int(self.most["leased"]),
            own_mib=round(self.most["own"], 1),
            used_mib=int(self.most["used"]),
            foreign_mib=int(self.most.get("foreign", 0)),
            outside=tuple(dict.fromkeys(names))[:5],
        )


class _Machine:
    """The host's part of the figures."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()

    def values(self) -> dict[str, float]:
        import psutil

        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
