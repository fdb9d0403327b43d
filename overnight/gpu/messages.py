"""Who is in the way, for people."""

import os
from collections.abc import Iterable, Sequence

from overnight.gpu.card import Card
from overnight.gpu.device_usage import Gauge, Program, foreign_mib, holders, outsiders, printable
from overnight.gpu.ledger.entries import Request

NAMED = 3  # programs of others that are named
REST_MIB = 256  # what the others among them must come to for a word
STARTED_BY = "; it started this process: should it wait for its end, ask for all of it at once there"


def waiting(
    card: Card, asked_mib: int, ahead: Sequence[Request], taken_mib: int, by: Gauge | None = None
) -> str:
    """`waiting for 2,048 MiB of the card, behind train_cnn (4,096 MiB) and ollama (5,100 MiB, not ours)`.

    Of a holder that has started this process it is said what to do should it wait for it: nobody can see that from outside.
    """
    above = ancestors() if any(r.holds for r in ahead) else set()
    behind = [f"{title(r)} ({r.mib:,} MiB{STARTED_BY if r.holds and r.pid in above else ''})" for r in ahead]
    if taken_mib:
        held = holders(card)
        behind += strangers(outsiders(card, held, by), foreign_mib(card, held, by) or taken_mib)
    return f"waiting for {asked_mib:,} MiB of the card" + (f", behind {listed(behind)}" if behind else "")


def ancestors() -> set[int]:
    """The processes above this one."""
    import psutil

    try:
        return {p.pid for p in psutil.Process(os.getpid()).parents()}
    except psutil.Error:  # one of them ended meanwhile
        return set()


def title(request: Request) -> str:
    """A request's step, else its process."""
    return printable(str(request.who.get("step") or f"pid {request.pid}"))


def strangers(programs: Sequence[Program], foreign_mib: int) -> list[str]:
    """The programs that hold no lease, with what they use; together where the driver does not say which of them uses how much."""
    sized = [p for p in programs if p.mib][:NAMED]
    if not sized:
        names = list(dict.fromkeys(p.name for p in programs)) or ["other programs"]
        names = names[:NAMED] + (["others"] if len(names) > NAMED else [])
        return [f"{listed(names)} ({'together ' if len(names) > 1 else ''}{foreign_mib:,} MiB, not ours)"]
    rest = foreign_mib - sum(p.mib or 0 for p in sized)
    found = [f"{p.name} ({p.mib:,} MiB, not ours)" for p in sized]
    return found + ([f"other programs ({rest:,} MiB, not ours)"] if rest >= REST_MIB else [])


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
