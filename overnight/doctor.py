"""`overnight doctor`: what this machine has, and what stands in the way."""

import shutil
import sys
from dataclasses import dataclass
from typing import Any

from overnight.errors import ServiceError
from overnight.gpu import device
from overnight.gpu.ledger import Ledger
from overnight.paths import root

FREE_GIB = 5


@dataclass(frozen=True)
class Check:
    """One thing looked at: how it is, and what to do when it is not well."""

    what: str
    ok: bool
    found: str

    def shown(self) -> dict[str, Any]:
        """As a row of a table."""
        return {"check": self.what, "": "ok" if self.ok else "PROBLEM", "found": self.found}


def checks() -> list[Check]:
    """All of them; none changes anything."""
    return [_python(), _card(), _ledger(), _disk(), *_services()]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", (3, 11) <= sys.version_info < (3, 14), f"{version} in {sys.prefix}")


def _card() -> Check:
    try:
        card = device.find()
    except ServiceError as error:
        return Check("card", False, str(error))
    return Check("card", True, f"{card}; torch is built for CUDA {device.torch_cuda()}")


def _ledger() -> Check:
    try:
        card = device.find()
    except ServiceError:
        card = device.virtual()
    ledger = Ledger(card.folder, card.budget_mib)
    return Check("ledger", True, f"{card.folder}: {ledger.held_mib()} of {card.budget_mib} MiB held")


def _disk() -> Check:
    free = shutil.disk_usage(root()).free / 2**30
    return Check(
        "disk", free > FREE_GIB, f"{free:.0f} GiB free" + ("" if free > FREE_GIB else f"; fewer than {FREE_GIB}: runs may not fit")
    )


def _services() -> list[Check]:
    from overnight.services import status

    return [Check(str(row["service"]), True, f"{row['state']} {row.get('address') or ''}".strip()) for row in status()]
