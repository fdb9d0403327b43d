"""lease(mib): hold a part of the card while a block runs; for steps, and for a user's own scripts."""

import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from overnight.best_effort import repeating
from overnight.errors import BadInput
from overnight.gpu import messages
from overnight.gpu.card import Card, find
from overnight.gpu.cuda_context import overhead
from overnight.gpu.device_usage import steady_overuse_mib
from overnight.gpu.ledger.filesystem import check_ledger
from overnight.gpu.ledger.ledger import Grant, Ledger
from overnight.gpu.ledger.waiter import REENTER_S, OnWait
from overnight.gpu.memory_limit import MIB, CudaMeter

HELD = "OVERNIGHT_LEASED_MIB"  # in the environment of a program that was started with a lease
_this_thread = threading.local()  # `held`: MiB by the card's UUID


@dataclass(frozen=True)
class Lease:
    card: Card
    mib: int
    wait_s: float
    grant: Grant

    @property
    def ticket(self) -> int:
        """To ask for it again after giving it back: `lease(mib, ticket=...)`."""
        return self.grant.ticket

    def update(self, **values: Any) -> None:
        self.grant.update(**values)


@contextmanager
def lease(
    mib: int,
    card: Card | None = None,
    owner: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: OnWait | None = None,
    exclusive: bool = False,
    smaller: Sequence[int] = (),
    ticket: int | None = None,
) -> Iterator[Lease]:
    """Hold `mib` of the card; prints to stderr what it waits for unless `on_wait` is given.

    owner: metadata of a step, which reports its use itself. exclusive: let no other lease run beside it.
    smaller: amounts (MiB) to accept while other programs use the card, where its policy is to shrink. ticket:
    of an earlier lease of its own that was given back.

    Raises DoesNotFit, Stopped, and BadInput for what is no amount, or inside another lease of this thread.
    """
    if os.environ.get(HELD):
        raise BadInput(
            f"lease({mib}): this program was given {os.environ[HELD]} MiB of the card when it was started, "
            "and could wait for itself; start it with --vram 0 (`vram: 0`), and it leases for itself"
        )
    card = card or find()
    mib = _positive_int(mib, f"lease({mib!r})", "a whole number of MiB, 1 or more")
    if ticket is not None:
        _positive_int(ticket, f"lease({mib}, ticket={ticket!r})", "the ticket of an earlier lease")
    if not isinstance(exclusive, bool):
        raise BadInput(f"lease({mib}, exclusive={exclusive!r}): expected True or False")
    check_ledger(card)
    began = time.monotonic()
    with (
        _only_lease(mib, card),
        Ledger(card.folder, card.budget_mib).acquire(
            mib,
            owner or {"step": program_name(sys.argv[0])},
            should_stop,
            on_wait or (lambda *ahead: _print_to_stderr(messages.waiting(card, mib, *ahead))),
            exclusive,
            partial(steady_overuse_mib, card),
            smaller if card.policy == "shrink" else (),
            ticket,
        ) as grant,
    ):
        grant.update(granted_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))  # no change of a clock touches it
        held = Lease(card, grant.mib, time.monotonic() - began, grant)
        with keep(held, {} if owner or card.virtual else sys.modules):
            yield held


def _print_to_stderr(line: str) -> None:
    """Without a stderr, with a closed pipe or a full disk, go on waiting in silence."""
    if sys.stderr:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr)


def _positive_int(value: Any, call: str, expected: str) -> int:
    try:
        found = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise BadInput(f"{call}: expected {expected}")
    return found


@contextmanager
def _only_lease(mib: int, card: Card) -> Iterator[None]:
    held = _this_thread.__dict__.setdefault("held", dict[str, int]())
    if card.uuid in held:
        raise BadInput(
            f"lease({mib}): this thread holds {held[card.uuid]} of the card's {card.budget_mib} MiB already, "
            "so it could wait for itself; ask for all of it at once, or leave the first `with` block before"
        )
    held[card.uuid] = mib
    try:
        yield
    finally:
        del held[card.uuid]


def program_name(argument: str) -> str:
    """Name for people of a program, from its sys.argv[0]."""
    file = Path(argument)
    if file.name == "ipykernel_launcher.py":
        return "a notebook"
    if argument in ("", "-c", "-"):
        return f"python {argument}".strip()
    return file.parent.name if file.name == "__main__.py" else file.name


@contextmanager
def keep(held: Lease, modules: Mapping[str, Any], every_s: float = REENTER_S) -> Iterator[None]:
    """Enter the lease again where its file was removed, and report what a script's torch uses."""

    def refresh() -> None:
        _restore(held.grant)
        update_usage(held, modules)

    with repeating(refresh, every_s):
        yield


def _restore(grant: Grant) -> None:
    try:
        if grant.restore():
            _print_to_stderr(
                f"{grant.request.path} was removed: the lease of {grant.mib} MiB is entered again"
            )
    except OSError as error:
        _print_to_stderr(f"{grant.request.path} was removed, and cannot be entered again: {error.strerror}")


def update_usage(held: Lease, modules: Mapping[str, Any]) -> None:
    """Report once what torch uses; without torch on this one card the whole lease counts as used.

    modules: those loaded by a script on a real card.
    """
    cuda = getattr(modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)() or cuda is None or cuda.device_count() != 1:
        return
    meter = CudaMeter(cuda)
    context_mib = overhead(held.card)
    use_mib, peak_mib = (round(n / MIB + context_mib, 1) for n in (meter.use(), meter.peak()))
    held.update(use_mib=use_mib, peak_mib=peak_mib)
