"""When to give the card back because programs outside take more and more of it: the policy `yield`."""

from collections.abc import Sequence

from overnight.gpu.card import Card
from overnight.gpu.device_usage import of_budget
from overnight.gpu.ledger.entries import Request

LOOKS = 20  # in a row, ten a second: what is gone again after two seconds is no reason


class Crowd:
    """What one holder sees of it. why: the reason to go, empty while there is none.

    Who holds with the younger ticket goes first: a holder stays as long as its own lease and those of the older ones fit beside what the
    programs outside use.
    """

    def __init__(self, card: Card, ticket: int, looks: int = LOOKS) -> None:
        self.card, self.ticket, self.looks = card, ticket, looks
        self.why, self._times = "", 0

    def see(self, held: Sequence[Request], foreign_mib: int | None) -> None:
        """One look at the holders and at what programs outside use, None while that is not known."""
        if foreign_mib is None:
            return
        taken = of_budget(self.card, foreign_mib)
        leases = sum(r.mib for r in held if r.ticket <= self.ticket)
        self._times = self._times + 1 if taken + leases > self.card.budget_mib else 0
        if self._times >= self.looks:
            self.why = (
                f"other programs use {taken} of the card's {self.card.budget_mib} MiB, which leaves no room for this lease: "
                "it is given back, and asked for again at the head of the line"
            )
