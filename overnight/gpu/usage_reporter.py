"""What a user's own script says of itself while it holds a lease: a step has its monitor for that."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.gpu.card import Card

if TYPE_CHECKING:
    from overnight.gpu.lease import Lease

EVERY_S = 1.0


def called(argument: str) -> str:
    """What a person would call the program that Python was started with as `argument` (sys.argv[0])."""
    file = Path(argument)
    if file.name == "ipykernel_launcher.py":
        return "a notebook"
    if argument in ("", "-c", "-"):
        return f"python {argument}".strip()
    return file.parent.name if file.name == "__main__.py" else file.name


@contextmanager
def talking(
    held: "Lease", card: Card, modules: Mapping[str, Any] = sys.modules, every_s: float = EVERY_S
) -> Iterator[None]:
    """While the block runs, tell the ledger what torch uses: what a lease does not use hides no other program then."""
    done = threading.Event()

    def body() -> None:
        while not done.wait(every_s):
            say(held, card, modules)

    thread = threading.Thread(target=body, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(held: "Lease", card: Card, modules: Mapping[str, Any]) -> None:
    """Nothing, where the script does not use torch on this one card: then the whole lease counts as used."""
    cuda = getattr(modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)() or cuda is None or cuda.device_count() != 1:
        return
    from overnight.gpu.cuda_context import overhead
    from overnight.gpu.memory_limit import MIB, OnCuda

    meter, context = OnCuda(cuda), overhead(card)
    held.tell(use_mib=round(meter.use() / MIB + context, 1), peak_mib=round(meter.peak() / MIB + context, 1))
