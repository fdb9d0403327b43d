"""Rows that are kept as they are made, intervals, and tables with bars: for every benchmark here."""

import importlib.metadata
import json
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from overnight.files import atomic_write, source_sha256

OUT = Path(__file__).resolve().parent / "out"
ENGINE = Path(__file__).resolve().parent.parent / "overnight"
Row = dict[str, Any]


def kept(
    name: str,
    keys: Sequence[Any],
    fresh: bool,
    make: FunctionType,
    code: Sequence[Path] = (),
    **settings: Any,
) -> list[Row]:
    """A row for each key, written as soon as it is made; of the same code and settings, not made again.

    code: files besides the loop's and `make`'s own whose change makes rows anew.
    """
    path, same = (
        OUT / f"{name}.json",
        " ".join([digest(Path(make.__code__.co_filename), *code), *map(str, settings.values())]),
    )
    found = json.loads(path.read_text()) if path.is_file() and not fresh else {}
    rows: dict[str, Row] = (
        {str(row["key"]): row for row in found["rows"]} if found.get("code") == same else {}
    )
    for key in keys:
        if str(key) not in rows:
            rows[str(key)] = {"key": key, **make(key), "load": round(os.getloadavg()[0], 1)}
            write(path, {"machine": machine(), "code": same, "rows": list(rows.values())})
            print(f"  {name} {key}: {rows[str(key)]}", flush=True)
    return [rows[str(key)] for key in keys]


def write(path: Path, value: Row) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(value, indent=1))


def digest(*measures: Path) -> str:
    """Of the loop's source, and of the files that measure it: rows of another code are made anew."""
    arms = Path(__file__).with_name("_baselines.py")
    files = [*sorted((ENGINE / "training").glob("*.py")), arms, *measures]
    return source_sha256(files)[:16]


def machine() -> Row:
    """What it ran on."""
    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    card = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    cpu = {
        "cpu": (model or ["?"])[0],
        "cores": os.cpu_count(),
        "amx_bf16": torch.cpu.get_capabilities().get("amx_bf16", False),
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "pillow")}
    return {
        **cpu,
        **card,
        **versions,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def folder() -> Path:
    """A new one."""
    return Path(tempfile.mkdtemp(prefix="overnight-bench-"))


def bar(what: str, measured: object, wanted: object, good: bool) -> bool:
    """A line of the table; whether the bar was met."""
    print(f"| {what} | {measured} | {wanted} | {'ok' if good else 'MISSED'} |", flush=True)
    return good


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and 95 % of what resampled pairs give."""
    draws = random.Random(0)
    found = []
    for _ in range(4000):
        chosen = draws.choices(range(len(ours)), k=len(ours))
        found.append(
            statistics.median(ours[i] for i in chosen) / statistics.median(theirs[i] for i in chosen)
        )
    found.sort()
    return statistics.median(ours) / statistics.median(theirs), found[100], found[-101]


def shown(found: tuple[float, float, float]) -> str:
    """An interval in words."""
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"
