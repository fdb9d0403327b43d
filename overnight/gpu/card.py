"""Which card a run uses: a real one seen by NVML, or the virtual one of a machine without a GPU."""

import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from overnight.config import Values
from overnight.errors import ServiceError
from overnight.gpu.out_of_memory import on_wsl
from overnight.paths import state

VIRTUAL_MIB = 12288
MAX_DIGITS = 8  # of an amount: some 100 TB, which the sums of scheduler.py can still hold
RESERVE_MIB = 1024  # for the desktop, its browser and the CUDA contexts
DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # there while a driver is loaded; of Linux and of WSL2
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
Policy = Literal["wait", "shrink", "yield"]
WSL_RESERVE_MIB = 1536  # there, too much asked for ends as a lost context rather than as out of memory
CAPABILITY = 7.5  # the least that torch has kernels for (torch._C._cuda_getArchFlags)
DRIVERS = {13: 580, 12: 525}  # the oldest driver of a CUDA major version (CUDA compatibility guide)


class Card(Values):
    """One card and what of it may be granted.

    reserved_mib: what the driver keeps for itself; count: whether the virtual card counts and caps the bytes
    of tensors; policy: what a step does while other programs use the card: wait for the amount it asked,
    shrink to what is left, or wait, and yield what it holds when they take it.
    """

    uuid: str
    name: str
    total_mib: int
    budget_mib: int
    index: int = 0
    driver: str = ""
    reserved_mib: int = 0
    capability: float = CAPABILITY
    count: bool = False
    policy: Policy = "wait"

    @property
    def virtual(self) -> bool:
        return self.uuid == "virtual"

    @property
    def folder(self) -> Path:
        """Of its ledger: one a user and card outside every checkout; the virtual card's lies inside."""
        named = os.environ.get("OVERNIGHT_CARD_DIR")
        if named:
            # `~` of an unknown user stays, which makes it relative; `check_location` refuses that.
            return Path(os.path.expanduser(named)) / self.uuid  # noqa: PTH111
        if self.virtual:
            return state() / "cards" / "virtual"
        home = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not home.is_absolute():  # a relative one counts as unset (XDG base directories)
            home = Path.home() / ".local" / "state"
        return home / "overnight" / "cards" / self.uuid

    def fast_precision(self) -> str:
        """Precision that `precision: auto` chooses."""
        return "bf16" if self.capability >= 8 else "fp16"

    def __str__(self) -> str:
        if self.virtual:
            mib = self.budget_mib
            size = f"{mib / 1024:.3g} GiB" if mib >= 1024 else f"{mib} MiB"
            return f"virtual card, {size}: no GPU is used, steps run on the CPU under the same rules"
        amounts = f"{self.budget_mib} of {self.total_mib} MiB may be granted"
        return f"{self.name} (card {self.index}, driver {self.driver}): {amounts}"


def find(
    wanted: str | int | None = None, cpu: bool = False, count: bool = False, policy: Policy = "wait"
) -> Card:
    """The card to use.

    wanted: nvidia-smi's index, UUID or "virtual"; None: the first of `$CUDA_VISIBLE_DEVICES`, else the
    largest that torch can use, or the virtual card without a GPU. cpu: the virtual card. Raises ServiceError
    when there is no such card, when torch cannot use it, or when the budget exceeds it.
    """
    if cpu or wanted == "virtual":
        return virtual(count, policy)
    cards = real()
    matching = [c for c in cards if wanted in (c.index, str(c.index), c.uuid)]
    if wanted is None:
        matching = visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
    elif not cards:
        raise ServiceError(
            f"card {wanted!r}: this machine shows no NVIDIA card; leave `card` out, or use --cpu"
        )
    elif not matching:
        known = ", ".join(f"{c.index} ({c.uuid})" for c in cards)
        raise ServiceError(f"card {wanted!r}: there is no such card; there are {known}")
    if not matching:
        return virtual(count, policy)
    chosen = matching[0]
    check_budget(chosen.name, chosen.total_mib - chosen.reserved_mib, reserve_mib())
    check_driver(chosen.driver, torch_cuda())
    if chosen.capability < CAPABILITY:
        raise ServiceError(
            f"{chosen.name} has compute capability {chosen.capability}, and torch has kernels from "
            f"{CAPABILITY} on: choose another card (`card`), or use --cpu"
        )
    return chosen.model_copy(update={"policy": policy})


def visible(cards: list[Card], variable: str | None) -> list[Card]:
    """Those that `$CUDA_VISIBLE_DEVICES` leaves, in its order, up to the first unknown name.

    Numbers count from the fastest, as in CUDA. Raises ServiceError for a part of a card (MIG).
    """
    if variable is None:
        return sorted(cards, key=lambda card: (card.capability < CAPABILITY, -card.total_mib))
    found = []
    numbered = cards
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        numbered = sorted(cards, key=lambda card: card.index)
    for name in (part.strip() for part in variable.split(",")):
        if name.startswith("MIG-"):
            raise ServiceError(
                f"CUDA_VISIBLE_DEVICES={variable}: a part of a card (MIG) cannot be leased; name a whole card"
            )
        card = next((c for c in cards if name and c.uuid.startswith(name)), None)
        if name.isdecimal():
            card = next(iter(numbered[int(name) :]), None)
        if card is None:
            break
        found.append(card)
    return found


def virtual(count: bool = False, policy: Policy = "wait") -> Card:
    """The virtual card, of `$OVERNIGHT_VIRTUAL_MIB` (12 GiB)."""
    size = _mib("OVERNIGHT_VIRTUAL_MIB", VIRTUAL_MIB)
    check_budget("the virtual card", size, 0)
    return Card(
        uuid="virtual",
        name="virtual",
        total_mib=size,
        budget_mib=_budget(size, 0),
        count=count or _flag("OVERNIGHT_COUNT"),
        policy=policy,
    )


def real() -> list[Card]:
    """All that NVML sees, the fastest first; none without a driver.

    Raises ServiceError when the driver does not answer.
    """
    import pynvml as nvml

    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        speeds = [_speed(nvml, handle) for handle in handles]
        cards = [_card(nvml, index, handle) for index, handle in enumerate(handles)]
        return [cards[index] for index in sorted(range(len(cards)), key=lambda index: -speeds[index])]
    except nvml.NVMLError_LibraryNotFound:
        return []
    except nvml.NVMLError as error:  # a card that fell off the bus, a driver updated under the running system
        loaded = any(Path(device).exists() for device in DEVICES)
        if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED and not loaded:
            return []
        raise ServiceError(
            f"the NVIDIA driver does not say what the card is ({error}): see `nvidia-smi`, or use --cpu"
        ) from None
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _speed(nvml: Any, handle: Any) -> int:
    """A measure to compare cards by, as CUDA does to number them."""
    try:
        clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        return int(nvml.nvmlDeviceGetNumGpuCores(handle) * clock)
    except nvml.NVMLError:
        return 0


def _card(nvml: Any, index: int, handle: Any) -> Card:
    total, _, reserved = memory(nvml, handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Card(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        total_mib=total,
        budget_mib=_budget(total - reserved, reserve_mib()),
        index=index,
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        reserved_mib=reserved,
        capability=major + minor / 10,
    )


def reserve_mib() -> int:
    """What of a real card is kept for other programs, unless `$OVERNIGHT_RESERVE_MIB` says it."""
    return WSL_RESERVE_MIB if on_wsl() else RESERVE_MIB


def memory(nvml: Any, handle: Any) -> tuple[int, int, int]:
    """(total, used by programs, kept by the driver) in MiB; old drivers count the last as used."""
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
    return int(found.total) >> 20, int(found.used) >> 20, int(getattr(found, "reserved", 0)) >> 20


def _budget(total_mib: int, reserve_mib: int) -> int:
    if os.environ.get("OVERNIGHT_BUDGET_MIB"):
        return min(total_mib, _mib("OVERNIGHT_BUDGET_MIB", total_mib))
    return max(1, total_mib - _reserve(reserve_mib))


def check_budget(name: str, total_mib: int, reserve_mib: int) -> None:
    """Raise ServiceError when more is to be granted than the card has, or nothing is left to grant."""
    wanted = _mib("OVERNIGHT_BUDGET_MIB", total_mib)
    if wanted > total_mib:
        raise ServiceError(
            f"OVERNIGHT_BUDGET_MIB={wanted}: {name} has {total_mib} MiB in all; "
            "ask for that or less, or unset it"
        )
    reserve = _reserve(reserve_mib)
    if not os.environ.get("OVERNIGHT_BUDGET_MIB") and reserve >= total_mib:
        raise ServiceError(
            f"OVERNIGHT_RESERVE_MIB={reserve}: {name} has {total_mib} MiB in all, so nothing is left "
            "to grant; reserve less"
        )


def _reserve(default_mib: int) -> int:
    return _mib("OVERNIGHT_RESERVE_MIB", default_mib, least=0) if default_mib else 0


def torch_cuda() -> str | None:
    """The CUDA version of torch, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text()
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


def check_driver(driver: str, cuda: str | None) -> None:
    """Raise ServiceError when torch cannot use the card: never a silent fall-back to the CPU."""
    if cuda is None:
        raise ServiceError(
            "the installed torch has no CUDA in it, so it cannot use the card: run `make setup`, or use --cpu"
        )
    needed = DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0] or 0) < needed:
        raise ServiceError(
            f"the NVIDIA driver is {driver}, and torch's CUDA {cuda} needs {needed} or newer: "
            "update it, or use --cpu"
        )


def _mib(variable: str, default: int, least: int = 1) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal()) or len(text.lstrip("0")) > MAX_DIGITS or int(text) < least:
        raise ServiceError(
            f"{variable}={text[:40]!r}: expected a whole number of MiB, {least} to {'9' * MAX_DIGITS}"
        )
    return int(text)


def _flag(variable: str) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text not in (*YES, *NO):
        raise ServiceError(f"{variable}={text[:40]!r}: expected 1 or 0")
    return text in YES
