"""lease(mib): hold a part of the card while a block runs; for steps, and for a user's own scripts."""

import operator
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from overnight.errors import BadInput
from overnight.gpu import messages
from overnight.gpu.card import Card, find
from overnight.gpu.device_usage import steady_taken_mib
from overnight.gpu.ledger.ledger import Grant, Ledger
from overnight.gpu.ledger.waiter import OnWait
from overnight.gpu.preflight import ready
from overnight.gpu.usage_reporter import called, talking

_mine = threading.local()  # what each thread holds already, in `held`


@dataclass(frozen=True)
class Lease:
    """What was granted, and how long it took."""

    card: Card
    mib: int
    wait_s: float
    grant: Grant

    @property
    def ticket(self) -> int:
        """Its place in the order of all requests: who gives the card back for a while asks with it again, `lease(mib, ticket=...)`."""
        return self.grant.ticket

    def tell(self, **facts: Any) -> None:
        """Say something of the holder that `overnight gpu` and other steps may read: use_mib, peak_mib."""
        self.grant.tell(**facts)


@contextmanager
def lease(
    mib: int,
    card: Card | None = None,
    who: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: OnWait | None = None,
    exclusive: bool = False,
    smaller: Sequence[int] = (),
    ticket: int | None = None,
) -> Iterator[Lease]:
    """Hold `mib` of the card; waits in line for it, and says on stderr for whom unless `on_wait` does.

    Raises DoesNotFit, Stopped, and BadInput for what is no amount or would wait for this thread itself.

    who: a step, which says itself what it uses; for a script that is done here.
    exclusive: let nobody run beside it; smaller: amounts (MiB) to be content with while other programs use the card, where the card's
    policy is to shrink. What these programs use counts as held. A lease inside another stands in line where that one stood. ticket: that of an own lease which was given back for a while.
    """
    card = card or find()
    mib = _whole("", mib)
    if ticket is not None:
        _whole(f"{mib}, ticket=", ticket)
    if not isinstance(exclusive, bool):
        raise BadInput(f"lease({mib}, exclusive={exclusive!r}): expected True or False")
    ready(card)
    less = smaller if card.policy == "shrink" else ()
    taken = partial(steady_taken_mib, card)
    began = time.monotonic()
    named = who or {"step": called(sys.argv[0])}
    on_wait = on_wait or (lambda ahead, taken_mib: _say(messages.waiting(card, mib, ahead, taken_mib)))
    with (
        _holding(mib, exclusive, card) as (mine, outer),
        Ledger(card.folder, card.budget_mib).acquire(
            mib,
            named | outer,
            should_stop,
            on_wait,
            exclusive,
            taken,
            less,
            ticket or min(outer.get("holding", [0])) or None,
        ) as grant,
    ):
        mine.ticket = grant.ticket
        grant.tell(granted_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))  # a clock that nobody sets
        held = Lease(card, grant.mib, time.monotonic() - began, grant)
        with nullcontext() if who or card.virtual else talking(held, card):
            yield held


def _say(line: str) -> None:
    """On stderr, where there is one: a pipe that nobody reads, or a full disk, is no reason not to wait."""
    if sys.stderr:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr)


def _whole(before: str, number: Any) -> int:
    """A number as the ledger writes it into names: half a MiB would be a request that nobody can read."""
    try:
        found = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        found = 0
    if found < 1:
        what = "the ticket of an earlier lease" if before else "a whole number of MiB, 1 or more"
        raise BadInput(f"lease({before}{number!r}): expected {what}")
    return found


@dataclass
class _Held:
    """What a thread holds of a card."""

    uuid: str
    mib: int
    exclusive: bool
    ticket: int = 0


@contextmanager
def _holding(mib: int, exclusive: bool, card: Card) -> Iterator[tuple[_Held, dict[str, Any]]]:
    """Note what this thread holds; BadInput when it asks for what only its own lease keeps from it: that would be waited for in vain.

    Also what its request says of what the thread holds already.
    """
    held = _mine.__dict__.setdefault("held", list[_Held]())
    here = [h for h in held if h.uuid == card.uuid]
    sum_mib = sum(h.mib for h in here)
    if here and (exclusive or any(h.exclusive for h in here) or mib <= card.budget_mib < sum_mib + mib):
        raise BadInput(
            f"lease({mib}): this thread holds {sum_mib} of the card's {card.budget_mib} MiB already, so it would wait for itself; "
            "ask for all of it at once, or leave the first `with` block before"
        )
    held.append(entry := _Held(card.uuid, mib, exclusive))
    try:
        yield entry, {"holding": [h.ticket for h in here]} if here else {}
    finally:
        held.remove(entry)
