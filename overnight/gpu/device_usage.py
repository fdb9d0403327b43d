"""What the whole card holds, and how much of it other processes use; no other module asks the device.

Which process holds how much is unknown on WSL2, and in containers process ids mean nothing. So everything
rests on what the whole card uses and what each lease holder reports; the rest belongs to other processes.
Their names, where the driver lists them, are for people only.

On the virtual card holders use what they report, and the file `other_processes` of its folder lists other
programs, a line `MIB [pid=PID] [NAME]` for each:
`echo 5100 ollama > .overnight/cards/virtual/other_processes`.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from overnight.gpu.card import Card, memory
from overnight.gpu.ledger import entries
from overnight.gpu.ledger.entries import Request, amount
from overnight.processes import STEP_MARK, environment_of

T = TypeVar("T")
_LINE = re.compile(r"\s*(?P<mib>[0-9]{1,9})(\s+pid=(?P<pid>[0-9]{1,9}))?(?P<name>(\s.*)?)")
RETRY_S = 5.0  # after the driver did not answer
SECOND_SAMPLE_S = 0.4  # a holder's report is up to 0.3 s old


@dataclass(frozen=True)
class Program:
    """A process that uses the card. mib: None where the driver does not say."""

    name: str
    pid: int = 0
    mib: int | None = None


class Device(Protocol):
    """What a card can be asked. problem: why it does not answer, empty while it does."""

    problem: str

    def used_mib(self, card: Card, held: Iterable[Request]) -> int:
        """By all processes; the last known value while it does not answer."""

    def programs(self, card: Card) -> list[Program]:
        """As far as the driver lists them; ours among them."""

    def load_percent(self, card: Card) -> float | None: ...

    def energy_j(self, card: Card) -> float | None:
        """Taken since its driver was loaded; None where the card does not count it."""

    def power_w(self, card: Card) -> float | None:
        """Of the last moment; None where the card does not say it."""


@cache
def device_of(card: Card) -> Device:
    """One for each card and process, so that the driver is set up once."""
    return FakeDevice() if card.virtual else NvmlDevice()


class NvmlDevice:
    """A real card. While it is lost or the driver reloads, the last known values are returned."""

    def __init__(self, nvml: ModuleType | Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem = ""
        self._nvml = nvml
        self._clock = clock
        self._handle: Any = None
        self._used = 0
        self._retry_at = 0.0
        self._load: float | None = None

    def used_mib(self, card: Card, held: Iterable[Request] = ()) -> int:  # noqa: ARG002
        self._used = self._ask(card, lambda nvml, handle: memory(nvml, handle)[1], self._used)
        return self._used

    def load_percent(self, card: Card) -> float | None:
        def load(nvml: Any, handle: Any) -> float:
            return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)

        self._load = self._ask(card, load, self._load)
        return self._load

    def energy_j(self, card: Card) -> float | None:
        def counted(nvml: Any, handle: Any) -> float | None:
            with suppress(
                nvml.NVMLError
            ):  # of a card or driver that does not know it: no reason to set it up anew
                return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
            return None

        return self._ask(card, counted, None)

    def power_w(self, card: Card) -> float | None:
        def power(nvml: Any, handle: Any) -> float | None:
            with suppress(nvml.NVMLError):
                return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
            return None

        return self._ask(card, power, None)

    def programs(self, card: Card) -> list[Program]:
        return self._ask(card, _programs, [])

    def _ask(self, card: Card, question: Callable[[Any, Any], T], last: T) -> T:
        if self._handle is None and self._clock() < self._retry_at:
            return last
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        try:
            if self._handle is None:
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(card.uuid)
            answer = question(self._nvml, self._handle)
        except self._nvml.NVMLError_NotSupported:  # the load of some cards, lists of programs on WSL2
            return last
        except self._nvml.NVMLError as error:
            self._lose(str(error))
            return last
        self.problem = ""
        return answer

    def _lose(self, problem: str) -> None:
        """Set the driver up anew in a while: a handle does not survive its reload."""
        self.problem = problem
        self._handle = None
        self._retry_at = self._clock() + RETRY_S
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _programs(nvml: Any, handle: Any) -> list[Program]:
    """Processes with a context on the card; one that computes and draws is listed twice and counts once."""
    found = dict[int, int | None]()
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(nvml.NVMLError):  # absent on WSL2, forbidden in some containers
            for process in ask(handle):
                used = process.usedGpuMemory  # None: the driver does not know (WDDM)
                known = found.get(process.pid)
                found[process.pid] = known if used is None else max(known or 0, int(used) >> 20)
    return [Program(_process_name(pid), pid, mib) for pid, mib in found.items()]


def _process_name(pid: int) -> str:
    import psutil

    try:
        return printable(psutil.Process(pid).name())
    except psutil.Error:  # it ended meanwhile, or lives in another container
        return f"pid {pid}"


def printable(text: str) -> str:
    """Without control sequences of the terminal."""
    return "".join(c for c in text if c.isprintable())


class FakeDevice:
    problem = ""

    def __init__(self) -> None:
        self._version = (0, 0, 0)
        self._programs = list[Program]()

    def used_mib(self, card: Card, held: Iterable[Request]) -> int:
        """What a program of a step uses is in the report of the step."""
        others = (p for p in self.programs(card) if STEP_MARK not in environment_of(p.pid))
        return sum(map(reported_mib, held)) + sum(p.mib or 0 for p in others)

    def programs(self, card: Card) -> list[Program]:
        path = card.folder / "other_processes"
        try:
            found = path.stat()
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
            if version != self._version:  # this is asked ten times a second
                self._programs = self._read(path)
                self._version = version
        except OSError:
            return []
        return [p for p in self._programs if not p.pid or Path(f"/proc/{p.pid}").exists()]

    def _read(self, path: Path) -> list[Program]:
        found = []
        for line in path.read_text(errors="replace").splitlines():
            parts = _LINE.fullmatch(line)
            if parts:
                name = printable(parts["name"].strip()) or "other programs"
                found.append(Program(name, int(parts["pid"] or 0), int(parts["mib"])))
        return found

    def load_percent(self, card: Card) -> float | None:  # noqa: ARG002
        return None

    def energy_j(self, card: Card) -> float | None:  # noqa: ARG002
        return None

    def power_w(self, card: Card) -> float | None:  # noqa: ARG002
        return None


class EnergyMeter:
    """What the whole card takes, from its making on to the last `sample`.

    By the card's counter; where it has none, by the power that it takes at each sample.
    """

    def __init__(
        self, card: Card, device: Device | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.watt_hours: float | None = None  # None: not measured
        self._card = card
        self._device = device or device_of(card)
        self._clock = clock
        self._counted = self._device.energy_j(card)
        self._at = clock()

    def sample(self) -> None:
        counted = self._device.energy_j(self._card)
        before = self._counted
        elapsed_s = self._clock() - self._at
        self._counted = counted
        self._at += elapsed_s
        joules = None
        if counted is not None and before is not None and counted >= before:  # it begins anew with the driver
            joules = counted - before
        elif counted is None:
            power = self._device.power_w(self._card)
            joules = None if power is None else power * elapsed_s
        if joules is not None:
            self.watt_hours = (self.watt_hours or 0.0) + joules / 3600


def holders(card: Card) -> list[Request]:
    return entries.holders(card.folder)


def reported_mib(request: Request) -> int:
    """What a holder reports that it uses; its whole lease while it reports nothing."""
    use = amount(request.owner.get("use_mib"))
    return request.mib if use is None else round(use)


def program_mib(card: Card, mark: str, device: Device | None = None) -> int | None:
    """MiB of the processes whose environment has this mark of a step; None where the driver lists no such."""
    listed = [p for p in (device or device_of(card)).programs(card) if p.pid and p.mib is not None]
    own = [p.mib or 0 for p in listed if environment_of(p.pid).get(STEP_MARK) == mark]
    return sum(own) if own or card.virtual else None


def other_processes_mib(card: Card, held: Iterable[Request], device: Device | None = None) -> int:
    held = list(held)
    used = (device or device_of(card)).used_mib(card, held)
    return max(0, used - sum(map(reported_mib, held)))


def overuse_mib(card: Card, held: Iterable[Request], device: Device | None = None) -> int:
    return over_reserve_mib(card, other_processes_mib(card, held, device))


def over_reserve_mib(card: Card, mib: int) -> int:
    """Of what other processes use, the part that exceeds the reserve kept for them."""
    reserve = 0 if card.virtual else card.total_mib - card.reserved_mib - card.budget_mib
    return max(0, mib - reserve)


def steady_overuse_mib(card: Card, pause: Callable[[float], None] = time.sleep) -> int:
    """`overuse_mib` for decisions: the smaller of two samples.

    Memory that a holder has just taken and not yet reported looks like that of another process.
    """
    held = holders(card)
    overuse = overuse_mib(card, held)
    if overuse and any("use_mib" in r.owner for r in held):
        pause(SECOND_SAMPLE_S)
        overuse = min(overuse, overuse_mib(card, holders(card)))
    return overuse


def other_processes(card: Card, held: Iterable[Request], device: Device | None = None) -> list[Program]:
    """The largest first: all but the holders and their process groups."""
    ours = {os.getpid(), *(r.pid for r in held)}
    groups = {_group(pid) for pid in ours} - {0}
    listed = sorted((device or device_of(card)).programs(card), key=lambda p: -(p.mib or 0))
    return [p for p in listed if not p.pid or (p.pid not in ours and _group(p.pid) not in groups)]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, OverflowError, PermissionError):  # drivers list pids of 2^31 and more
        return 0
