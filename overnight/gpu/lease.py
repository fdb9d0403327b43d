"""lease(mib): hold a part of the card while a block runs; for steps, and for a user's own scripts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from overnight.gpu.device import Card, find
from overnight.gpu.ledger import Ledger, Request


@dataclass(frozen=True)
class Lease:
    """What was granted, and how long it took."""

    card: Card
    mib: int
    wait_s: float


@contextmanager
def lease(
    mib: int,
    card: Card | None = None,
    who: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[list[Request]], None] = lambda _ahead: None,
) -> Iterator[Lease]:
    """Hold `mib` of the card; waits in line for it. Raises DoesNotFit, Stopped."""
    card = card or find()
    began = time.monotonic()
    with Ledger(card.folder, card.budget_mib).acquire(mib, who, should_stop, on_wait) as grant:
        yield Lease(card, grant.mib, time.monotonic() - began)
