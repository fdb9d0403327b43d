"""Which card a run uses: a real one seen by NVML, or the virtual one of a machine without a GPU."""

import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path

from overnight.config import Values
from overnight.errors import ServiceError
from overnight.paths import state

VIRTUAL_MIB = 12288
RESERVE_MIB = 1024  # for the desktop, its browser and the CUDA contexts
DRIVERS = {13: 580, 12: 525}  # the oldest driver of a CUDA major version (CUDA compatibility guide)


class Card(Values):
    """One card and what of it may be granted."""

    uuid: str
    name: str
    total_mib: int
    budget_mib: int
    index: int = 0
    driver: str = ""

    @property
    def virtual(self) -> bool:
        """No GPU stands behind it: the same budget and rules, on the CPU."""
        return self.uuid == "virtual"

    @property
    def folder(self) -> Path:
        """Where its ledger lies: one for each user and card, outside every checkout; the virtual card's lies inside."""
        named = os.environ.get("OVERNIGHT_CARD_DIR")
        if named:
            return Path(named) / self.uuid
        if self.virtual:
            return state() / "cards" / "virtual"
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return home / "overnight" / "cards" / self.uuid

    def __str__(self) -> str:
        if self.virtual:
            return f"virtual card, {self.budget_mib / 1024:.3g} GiB: no GPU is used, steps run on the CPU under the same rules"
        return f"{self.name} (card {self.index}, driver {self.driver}): {self.budget_mib} of {self.total_mib} MiB may be granted"


def find(wanted: str | int | None = None, cpu: bool = False) -> Card:
    """The card to use: by index or UUID, the first when left out, the virtual one without a GPU or with `cpu`.

    Raises ServiceError when there is no such card, or when torch cannot use what NVML sees.
    """
    cards = [] if cpu else real()
    if not cards:
        if wanted is not None and not cpu:
            raise ServiceError(f"card {wanted!r}: this machine shows no NVIDIA card; leave `card` out, or use --cpu")
        return virtual()
    chosen = cards[0] if wanted is None else next((c for c in cards if wanted in (c.index, str(c.index), c.uuid)), None)
    if chosen is None:
        raise ServiceError(f"card {wanted!r}: there is no such card; there are {', '.join(f'{c.index} ({c.uuid})' for c in cards)}")
    check_driver(chosen.driver, torch_cuda())
    return chosen


def virtual() -> Card:
    """A card of `$OVERNIGHT_VIRTUAL_MIB` (12 GiB) that is not there."""
    size = _mib("OVERNIGHT_VIRTUAL_MIB", VIRTUAL_MIB)
    return Card(uuid="virtual", name="virtual", total_mib=size, budget_mib=size)


def real() -> list[Card]:
    """Every card that NVML sees; none when there is no driver."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _card(nvml: object, index: int) -> Card:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20  # type: ignore[attr-defined]
    return Card(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),  # type: ignore[attr-defined]
        name=str(nvml.nvmlDeviceGetName(handle)),  # type: ignore[attr-defined]
        total_mib=total,
        budget_mib=total - _mib("OVERNIGHT_RESERVE_MIB", RESERVE_MIB),
        index=index,
        driver=str(nvml.nvmlSystemGetDriverVersion()),  # type: ignore[attr-defined]
    )


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", (Path(spec.origin).parent / "version.py").read_text(), re.MULTILINE)
    return found.group(1) if found else None


def check_driver(driver: str, cuda: str | None) -> None:
    """ServiceError when torch cannot use the card: never a silent fall-back to the CPU."""
    if cuda is None:
        raise ServiceError("the installed torch has no CUDA in it, so it cannot use the card: run `make setup`, or use --cpu")
    needed = DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0] or 0) < needed:
        raise ServiceError(f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {needed} or newer: update it, or use --cpu")


def _mib(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit() or int(text) <= 0:
        raise ServiceError(f"{variable}={text!r}: expected a number of MiB above 0")
    return int(text)
