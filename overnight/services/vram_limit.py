"""The ledger as Prefect shows it: a limit `gpu0-vram` for each card, one slot for each GiB. One way: nothing acquires it, nothing waits for it."""

import time
import urllib.error

from overnight.errors import OvernightError
from overnight.gpu.card import Card, real, virtual
from overnight.gpu.ledger.ledger import Ledger
from overnight.services.definitions import ask_prefect, get
from overnight.services.settings import Settings

EVERY_S = 2.0
AGAIN_S = 20.0  # a person or another program may have changed it
AWAY_S = 8.0  # a server that hangs must not take the supervisor's time
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


class Projection:
    """What was told to the server, so that only news is told."""

    def __init__(self) -> None:
        self.cards = cards()
        self.told: dict[str, Values] = {}
        self.looked = self.checked = 0.0

    def tell(self, now: Settings) -> None:
        """Bring the server's limits up to date; one that is away is told everything when it is back."""
        moment = time.monotonic()
        if moment - self.looked < EVERY_S:
            return
        self.looked = moment
        if moment - self.checked > AGAIN_S:
            self.told.clear()
        try:
            for card in self.cards:
                self._tell(now, name(card), _values(card))
        except (OSError, ValueError, KeyError, OvernightError):
            self.told.clear()
            self.looked = moment + AWAY_S
            return
        if moment - self.checked > AGAIN_S:
            self.checked = moment

    def _tell(self, now: Settings, limit: str, values: Values) -> None:
        if self.told.get(limit) == values:
            return
        there = _read(now, limit)
        if there is None:
            ask_prefect(now, "/v2/concurrency_limits/", {"name": limit, **values})
        elif there != values:
            ask_prefect(now, f"/v2/concurrency_limits/{limit}", values, method="PATCH")
        self.told[limit] = values


def _values(card: Card) -> Values:
    """What the server should say; that it decays or is switched off would be somebody's edit."""
    limit = max(1, slots(card.budget_mib))
    held = slots(Ledger(card.folder, card.budget_mib).held_mib())
    return {"limit": limit, "active_slots": min(limit, held), "active": True, "slot_decay_per_second": 0}


def _read(now: Settings, limit: str) -> Values | None:
    try:
        found = get(f"{now.prefect}/v2/concurrency_limits/{limit}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return {key: found[key] for key in ("limit", "active_slots", "active", "slot_decay_per_second")}
