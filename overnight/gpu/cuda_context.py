"""The cost of a CUDA context on this machine, which cannot be capped and comes off every lease.

Which process holds how much is unknown on WSL2, so the cost is the difference of the whole card's use around
the creation of a context. Other processes may allocate or free at that moment: implausible figures are
dropped, steps measure one after the other, and the median of several processes counts.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from overnight.files import atomic_write, read_json
from overnight.gpu.card import Card
from overnight.gpu.out_of_memory import on_wsl
from overnight.locks import hold

MIB = 1 << 20
UNMEASURED_MIB = 600
PLAUSIBLE_MIB = (100, 1600)  # 1343 MiB is the most ever reported for a context without a leak (V100, 2022)
TIMES = 3
TRIAL_S = 60.0
TRIAL = """
import sys, torch
for _ in range(3):
    parts = [torch.ones(int(sys.argv[1]) << 14, dtype=torch.uint8, device="cuda") for _ in range(48)]
    del parts[::2]
    torch.ones(int(sys.argv[1]) << 18, dtype=torch.uint8, device="cuda").sum().item()
    del parts
    torch.cuda.empty_cache()
"""


def overhead(card: Card) -> int:
    if card.virtual:
        return 0
    found = sorted(measured(card))
    return found[len(found) // 2] if found else UNMEASURED_MIB


def measure(card: Card, used_mib: Callable[[], int], warm: Callable[[], int]) -> None:
    """Measure the cost once more, up to TIMES times for this driver and this torch.

    used_mib: returns what the whole card uses; warm: makes the context, returns what torch's allocator took
    (bytes).
    """
    if len(measured(card)) >= TIMES:
        return
    with hold(card.folder / "overhead.lock", "the measurement of a CUDA context", wait=True):
        found = measured(card)
        before = used_mib()
        taken = warm()
        cost = used_mib() - before - -(-taken // MIB)
        if PLAUSIBLE_MIB[0] <= cost <= PLAUSIBLE_MIB[1] and len(found) < TIMES:
            _keep(card, _key(card), [*found, cost])


def can_expand(card: Card, kernel: str = "") -> bool:
    """Whether torch's allocator expands segments, which fragments less; on WSL2 where a trial went well."""
    return not on_wsl(kernel) or read_json(_path(card)).get(_trial(card)) is True


def try_expanding(card: Card, mib: int, kernel: str = "", script: str = TRIAL) -> None:
    """On WSL2, fill `mib` of the card with expandable segments in a process of its own, for later steps.

    Some cards fail at them there, whatever their name, driver and kernel (docs/card.md); so each driver is
    tried once, by the first holder of a lease, before it has a context itself.
    """
    if not on_wsl(kernel) or _trial(card) in read_json(_path(card)):
        return
    environ = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, "-c", script, str(mib)]
    works = False
    with suppress(subprocess.SubprocessError):
        subprocess.run(command, env=environ, capture_output=True, timeout=TRIAL_S, check=True)
        works = True
    _keep(card, _trial(card), works)


def warm_up() -> int:
    """Make the context with the kernels and handles that a training needs; bytes that torch holds then."""
    import torch

    device = torch.device("cuda")
    weights = torch.ones(8, 8, 3, 3, device=device, requires_grad=True)
    images = torch.ones(2, 8, 16, 16, device=device)
    torch.nn.functional.conv2d(images, weights).flatten(1).square().mm(
        torch.ones(8 * 14 * 14, 4, device=device)
    ).sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    return torch.cuda.memory_reserved(device)


def measured(card: Card) -> list[int]:
    """The figures (MiB) for this driver and this torch."""
    values = read_json(_path(card)).get(_key(card))
    return [v for v in values if isinstance(v, int)] if isinstance(values, list) else []


def _keep(card: Card, key: str, found: object) -> None:
    """Write what was found for later processes. A full disk is no error."""
    path = _path(card)
    with suppress(OSError):
        atomic_write(path, json.dumps({**read_json(path), key: found}, indent=1))


def _path(card: Card) -> Path:
    return card.folder / "overhead.json"


def _trial(card: Card) -> str:
    return f"{_key(card)}, expandable segments"


def _key(card: Card) -> str:
    return f"driver {card.driver}, torch {importlib.metadata.version('torch')}"
