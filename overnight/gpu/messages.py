"""Messages for people: which steps and programs a request waits for."""

import os
from collections.abc import Iterable, Sequence

from overnight.gpu.card import Card
from overnight.gpu.device_usage import (
    Program,
    holders,
    other_processes,
    other_processes_mib,
    printable,
)
from overnight.gpu.ledger.entries import Request

MAX_NAMED = 3  # programs
MIN_REST_MIB = 256  # of unnamed programs, to be mentioned
STARTED_BY = "; it started this process: should it wait for its end, ask for all of it at once there"


def waiting(card: Card, asked_mib: int, ahead: Sequence[Request], overuse_mib: int) -> str:
    """`waiting for 2,048 MiB of the card, behind train_cnn (4,096 MiB) and ollama (5,100 MiB, not ours)`."""
    above = ancestors() if any(r.holds for r in ahead) else set()
    behind = [f"{title(r)} ({r.mib:,} MiB{STARTED_BY if r.holds and r.pid in above else ''})" for r in ahead]
    if overuse_mib:
        held = holders(card)
        mib = other_processes_mib(card, held) or overuse_mib
        behind += describe_other_processes(other_processes(card, held), mib)
    return f"waiting for {asked_mib:,} MiB of the card" + (f", behind {listed(behind)}" if behind else "")


def ancestors() -> set[int]:
    import psutil

    try:
        return {p.pid for p in psutil.Process(os.getpid()).parents()}
    except psutil.Error:  # one of them ended meanwhile
        return set()


def title(request: Request) -> str:
    return printable(str(request.owner.get("step") or f"pid {request.pid}"))


def describe_other_processes(programs: Sequence[Program], total_mib: int) -> list[str]:
    """A part for each program; one sum where the driver does not say more."""
    sized = [p for p in programs if p.mib][:MAX_NAMED]
    if not sized:
        names = list(dict.fromkeys(p.name for p in programs)) or ["other programs"]
        if len(names) > MAX_NAMED:
            names = [*names[:MAX_NAMED], "others"]
        return [f"{listed(names)} ({'together ' if len(names) > 1 else ''}{total_mib:,} MiB, not ours)"]
    rest_mib = total_mib - sum(p.mib or 0 for p in sized)
    rest = [Program("other programs", mib=rest_mib)] if rest_mib >= MIN_REST_MIB else []
    return [f"{p.name} ({p.mib:,} MiB, not ours)" for p in sized + rest]


def listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
