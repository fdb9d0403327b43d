"""Mirrors the GPU ledger in Prefect: a limit `gpu0-vram` for each card, one slot for each GiB.

One way only: no run acquires the limit or waits for it.
"""

import time
import urllib.error

from overnight.errors import OvernightError
from overnight.gpu.card import Card, real, virtual
from overnight.gpu.ledger.ledger import Ledger
from overnight.services.definitions import ask_prefect, get
from overnight.services.settings import Settings

UPDATE_S = 2.0
RECHECK_S = 20.0  # a person or another program may have changed it
UNAVAILABLE_S = 8.0  # a server that hangs must not take the supervisor's time
Values = dict[str, float]


def cards() -> list[Card]:
    """Those of this machine, or the virtual one."""
    return real() or [virtual()]


def name(card: Card) -> str:
    """Of a card's limit."""
    return f"gpu{card.index}-vram"


def slots(mib: int) -> int:
    """GiB, a part of one counted as one."""
    return -(-mib // 1024)


class VramLimitMirror:
    """Keeps the limits of a Prefect server up to date; remembers what it sent, to send only changes."""

    def __init__(self) -> None:
        self.cards = cards()
        self.sent: dict[str, Values] = {}
        self.next_update = 0.0
        self.checked = 0.0

    def update(self, settings: Settings) -> None:
        """Send changes, and everything when the server comes back or after 20 s."""
        now = time.monotonic()
        if now < self.next_update:
            return
        self.next_update = now + UPDATE_S
        recheck = now - self.checked > RECHECK_S
        if recheck:
            self.sent.clear()
        try:
            for card in self.cards:
                self._send(settings, name(card), _values(card))
        except (OSError, ValueError, KeyError, OvernightError):
            self.sent.clear()
            self.next_update = now + UPDATE_S + UNAVAILABLE_S
            return
        if recheck:
            self.checked = now

    def _send(self, settings: Settings, limit: str, values: Values) -> None:
        if self.sent.get(limit) == values:
            return
        found = _server_values(settings, limit)
        if found is None:
            ask_prefect(settings, "/v2/concurrency_limits/", {"name": limit, **values})
        elif found != values:
            ask_prefect(settings, f"/v2/concurrency_limits/{limit}", values, method="PATCH")
        self.sent[limit] = values


def _values(card: Card) -> Values:
    """The limit as it should be; one that decays or is inactive was edited by hand."""
    limit = max(1, slots(card.budget_mib))
    held = slots(Ledger(card.folder, card.budget_mib).held_mib())
    return {"limit": limit, "active_slots": min(limit, held), "active": True, "slot_decay_per_second": 0}


def _server_values(settings: Settings, limit: str) -> Values | None:
    try:
        found = get(f"{settings.prefect}/v2/concurrency_limits/{limit}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return {key: found[key] for key in ("limit", "active_slots", "active", "slot_decay_per_second")}
