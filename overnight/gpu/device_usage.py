"""What the whole card holds, and what of it is not ours: the one place where the device is asked for memory.

Which process holds how much is unknown on WSL2, and in containers the numbers of processes mean nothing. So everything rests on two
things that are known everywhere: what the whole card uses, and what each holder of a lease says that it uses itself. The rest is
foreign: games, browsers, notebooks, Ollama. Their names, where the driver lists them, are for people only.

The virtual card has a fake of this: its holders use what they say, and the file `foreign` of its folder plays the other programs, with
a line `MIB [NAME]` for each: `echo 5100 ollama > .overnight/cards/virtual/foreign`.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, Protocol, TypeVar

from overnight.gpu.card import Card, memory
from overnight.gpu.ledger.entries import Request
from overnight.gpu.ledger.metadata import amount, read_if_any

T = TypeVar("T")
RETRY_S = 5.0  # after the driver did not answer
SECOND_LOOK_S = 0.4  # what a holder says of itself is up to three tenths of a second old


@dataclass(frozen=True)
class Program:
    """Somebody who uses the card. mib: None where the driver does not say."""

    name: str
    pid: int = 0
    mib: int | None = None


class Gauge(Protocol):
    """What a card can be asked. problem: why it does not answer, empty while it does."""

    problem: str

    def used_mib(self, card: Card, held: Iterable[Request]) -> int:
        """Used on the whole card by everybody; the last known value while it does not answer."""
        ...

    def programs(self, card: Card) -> list[Program]:
        """Who uses it, as far as the driver tells; ours among them."""
        ...

    def load_percent(self, card: Card) -> float | None:
        """How busy it is."""
        ...


def gauge(card: Card) -> Gauge:
    """The gauge of a card."""
    return Played(card) if card.virtual else _nvml(card.uuid)


@cache
def _nvml(_uuid: str) -> "Nvml":
    """One for each card and process, so that the driver is set up once."""
    return Nvml()


class Nvml:
    """A real card, asked by its UUID. A card that is lost or a driver that reloads ends nobody's step: the last known value stands."""

    def __init__(self, nvml: ModuleType | Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem = ""
        self._nvml, self._clock = nvml, clock
        self._handle: Any = None
        self._used, self._retry = 0, 0.0
        self._load: float | None = None

    def used_mib(self, card: Card, held: Iterable[Request] = ()) -> int:  # noqa: ARG002 - the driver knows without the holders
        """Without what the driver keeps for itself, where it tells them apart."""
        self._used = self._ask(card, lambda nvml, handle: memory(nvml, handle)[1], self._used)
        return self._used

    def load_percent(self, card: Card) -> float | None:
        self._load = self._ask(
            card, lambda nvml, handle: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu), self._load
        )
        return self._load

    def programs(self, card: Card) -> list[Program]:
        return self._ask(card, _programs, [])

    def _ask(self, card: Card, question: Callable[[Any, Any], T], last: T) -> T:
        if self._handle is None and self._clock() < self._retry:
            return last
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        try:
            if self._handle is None:
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(card.uuid)
            answer = question(self._nvml, self._handle)
        except (
            self._nvml.NVMLError_NotSupported
        ):  # such as the load of some cards, or lists of programs on WSL2
            return last
        except self._nvml.NVMLError as error:
            self._lose(str(error))
            return last
        self.problem = ""
        return answer

    def _lose(self, problem: str) -> None:
        """Start anew with the driver in a while: a handle does not survive its reload."""
        self.problem, self._handle, self._retry = problem, None, self._clock() + RETRY_S
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _programs(nvml: Any, handle: Any) -> list[Program]:
    """Those with a context on the card; one that computes and draws is listed twice and counts once."""
    found = dict[int, int | None]()
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(nvml.NVMLError):  # absent on WSL2, forbidden in some containers
            for process in ask(handle):
                used = process.usedGpuMemory  # None: the driver does not know (WDDM)
                known = found.get(process.pid)
                found[process.pid] = known if used is None else max(known or 0, int(used) >> 20)
    return [Program(_name(pid), pid, mib) for pid, mib in found.items()]


def _name(pid: int) -> str:
    import psutil

    try:
        return printable(psutil.Process(pid).name())
    except psutil.Error:  # it ended meanwhile, or lives in another container
        return f"pid {pid}"


def printable(text: str) -> str:
    """A name that somebody else chose, without what would command the terminal."""
    return "".join(c for c in text if c.isprintable())


class Played:
    """The virtual card's."""

    problem = ""

    def __init__(self, card: Card) -> None:
        self._path = str(card.folder / "foreign")
        self._read: tuple[tuple[int, int, int], list[Program]] = (0, 0, 0), []

    def used_mib(self, card: Card, held: Iterable[Request]) -> int:
        return sum(map(said_mib, held)) + sum(p.mib or 0 for p in self.programs(card))

    def programs(self, card: Card) -> list[Program]:  # noqa: ARG002
        try:
            found = os.stat(
                self._path
            )  # read again only when it has changed: this is asked ten times a second
        except OSError:
            return []
        version = found.st_ino, found.st_mtime_ns, found.st_size
        if version != self._read[0]:
            self._read = version, self._programs()
        return self._read[1]

    def _programs(self) -> list[Program]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            lines = os.read(descriptor, 1 << 16).decode(errors="replace").splitlines()
        except OSError:  # a folder of that name
            return []
        finally:
            os.close(descriptor)
        parts = [line.split(maxsplit=1) for line in lines if line.strip()]
        return [
            Program(printable(name[0].strip()) if name else "other programs", mib=int(mib))
            for mib, *name in parts
            if _whole(mib)
        ]

    def load_percent(self, card: Card) -> float | None:  # noqa: ARG002
        return None


def _whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


# ------------------------------------------------------------------------------------------------ what is not ours


def holders(card: Card) -> list[Request]:
    """Who holds a lease now, with what they say; from names and contents alone, since this is asked ten times a second."""
    folder = card.folder
    try:
        names = os.listdir(folder)  # noqa: PTH208 - paths as objects cost more than the looking
    except OSError:
        return []
    found = list[Request]()
    for name in names:
        if (
            name.startswith("h-")
            and (r := _parsed(folder, name))
            and (who := read_if_any(f"{folder}/{name}")) is not None
        ):
            found.append(Request(folder, True, r.ticket, r.mib, r.pid, r.exclusive, who))
    return found


_parsed = lru_cache(maxsize=256)(Request.parse)


def said_mib(request: Request) -> int:
    """What a holder has of the card: what it says, all of its lease while it says nothing."""
    said = amount(request.who.get("use_mib"))
    return request.mib if said is None else round(said)


def foreign_mib(card: Card, held: Iterable[Request], by: Gauge | None = None) -> int:
    """What programs use that hold no lease."""
    held = list(held)
    return max(0, (by or gauge(card)).used_mib(card, held) - sum(map(said_mib, held)))


def taken_mib(card: Card, held: Iterable[Request], by: Gauge | None = None) -> int:
    """What foreign programs use of the budget."""
    return of_budget(card, foreign_mib(card, held, by))


def of_budget(card: Card, foreign: int) -> int:
    """Of a foreign use, what exceeds the reserve that was left for it; the virtual card has none."""
    reserve = 0 if card.virtual else card.total_mib - card.reserved_mib - card.budget_mib
    return max(0, foreign - reserve)


def steady_taken_mib(card: Card, by: Gauge | None = None, pause: Callable[[float], None] = time.sleep) -> int:
    """`taken_mib` now, for those who decide by it.

    A holder that has just taken memory and not yet said so looks foreign for a moment; so where it matters the smaller of two looks counts.
    """
    held = holders(card)
    taken = taken_mib(card, held, by)
    if taken and any("use_mib" in r.who for r in held):
        pause(SECOND_LOOK_S)
        taken = min(taken, taken_mib(card, holders(card), by))
    return taken


def outsiders(card: Card, held: Iterable[Request], by: Gauge | None = None) -> list[Program]:
    """Programs that hold no lease, the largest first: all that the driver lists but the holders and what they started."""
    ours = {os.getpid(), *(r.pid for r in held)}
    groups = {group for pid in ours if (group := _group(pid))}
    found = [
        p
        for p in (by or gauge(card)).programs(card)
        if not p.pid or (p.pid not in ours and _group(p.pid) not in groups)
    ]
    return sorted(found, key=lambda p: -(p.mib or 0))


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
