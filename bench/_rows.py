"""What every benchmark of this folder needs: rows that are kept as they are made, intervals, and tables with bars."""

import hashlib
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

OUT = Path(__file__).resolve().parent / "out"
ENGINE = Path(__file__).resolve().parent.parent / "overnight"
Row = dict[str, Any]


def kept(name: str, wanted: int, fresh: bool, make: FunctionType) -> list[Row]:
    """`wanted` rows, those of an earlier start with the same code first; each is written as soon as it is made."""
    path, code = OUT / f"training-{name}.json", digest(Path(make.__code__.co_filename))
    found = json.loads(path.read_text()) if path.is_file() and not fresh else {}
    rows: list[Row] = found["rows"] if found.get("code") == code else []
    for number in range(len(rows), wanted):
        rows.append(make(number))
        write(path, {"machine": machine(), "code": code, "rows": rows})
        print(f"  {name} {number + 1}/{wanted}: {rows[-1]}", flush=True)
    return rows[:wanted]


def write(path: Path, value: Row) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def digest(measures: Path) -> str:
    """Of the loop's source, and of the file that measures it: rows of another code are made anew."""
    files = [ENGINE / "training.py", *sorted((ENGINE / "loop").glob("*.py")), Path(__file__).with_name("_arms.py"), measures]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def machine() -> Row:
    """What it ran on."""
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"cpu": (model or ["?"])[0], "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


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
        found.append(statistics.median(ours[i] for i in chosen) / statistics.median(theirs[i] for i in chosen))
    found.sort()
    return statistics.median(ours) / statistics.median(theirs), found[100], found[-101]
