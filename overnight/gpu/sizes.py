"""How much of the card a step asks for: what it needed before, else what is predicted, else what it declares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """What to ask the ledger for. micro_batch: None for a step that has none; smaller: (MiB, micro-batch), the largest first."""

    mib: int
    micro_batch: int | None = None
    exclusive: bool = False
    smaller: tuple[tuple[int, int], ...] = ()
    why: str = ""
