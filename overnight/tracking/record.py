"""What must be known to ship a step's spools, kept beside them: whoever finds the folder can go on with it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from overnight.config import Values
from overnight.files import atomic_write, read_json

RECORD, SHIPPED = "record.json", "shipped.json"


class End(Values):
    """How a run ended, and when."""

    status: str
    at: float


class Record(Values):
    """One attempt at a step."""

    uri: str
    experiment: str
    label: str
    parent: str = Field("", description="MLflow run of the experiment")
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    earlier: tuple[str, ...] = Field(
        (), description="folders of earlier attempts, whose run this one goes on with"
    )
    opening: bool = Field(
        False, description="a run was asked for; whether it was opened is not known while there is no run_id"
    )
    run_id: str = ""
    end: End | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Of a step's folder; None when there is none that can be read."""
        try:
            return cls.model_validate_json((folder / RECORD).read_text())
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> Self:
        """Whole or not at all; on a disk that is full not at all."""
        with suppress(OSError):
            atomic_write(folder / RECORD, self.model_dump_json(indent=1))
        return self

    def now(self, folder: Path, **changes: Any) -> Self:
        """With changes, written."""
        return self.model_copy(update=changes).write(folder)


class Shipped:
    """Up to which byte the spools of a folder have reached an MLflow run: written after MLflow has said so, and never before.

    A process that is killed in between sends its last portion again; for MLflow that is the same once more, and changes nothing.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path, self.run_id = folder / SHIPPED, run_id
        self.offsets: dict[str, int] = _numbers(self._all().get(run_id))

    def __getitem__(self, spool: str) -> int:
        return self.offsets.get(spool, 0)

    def __setitem__(self, spool: str, offset: int) -> None:
        self.offsets[spool] = offset
        with suppress(OSError):
            atomic_write(self.path, json.dumps({**self._all(), self.run_id: self.offsets}))

    def _all(self) -> dict[str, Any]:
        return read_json(self.path)


def _numbers(found: object) -> dict[str, int]:
    return {str(k): v for k, v in found.items() if isinstance(v, int)} if isinstance(found, Mapping) else {}
