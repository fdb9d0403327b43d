"""What a run is traced back to: the code, its uncommitted changes, the packages, the machine."""

import os
import socket
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from overnight.gpu.device import Card
from overnight.paths import root, state

PACKAGES = (
    "torch",
    "torchvision",
    "torch-geometric",
    "stable-baselines3",
    "gymnasium",
    "polars",
    "scikit-learn",
    "numpy",
    "prefect",
    "mlflow",
)
MAX_DIFF = 1_000_000


def tags(card: Card) -> dict[str, str]:
    """Who runs, where, on what: enough to tell later whether the process that opened a run still lives."""
    return {
        "overnight.host": socket.gethostname(),
        "overnight.state": str(state()),
        "overnight.boot": boot_id(),
        "overnight.pid": str(os.getpid()),
        "overnight.started": str(started(os.getpid())),
        "overnight.card": str(card),
        "mlflow.source.git.commit": commit(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what results depend on."""
    return {f"version/{name}": found for name in PACKAGES if (found := _version(name))}


def commit() -> str:
    """The commit of the checkout, with '+' when tracked files differ from it; empty outside git."""
    head = _git("rev-parse", "HEAD").strip()
    return f"{head}+" if head and dirty_diff() else head


@cache
def dirty_diff() -> str:
    """Uncommitted changes of tracked code, at most 1 MB."""
    text = _git("diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", "Makefile")
    return text if len(text) <= MAX_DIFF else text[:MAX_DIFF] + "\n... cut at 1 MB\n"


def boot_id() -> str:
    """Changes with every boot of the machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def started(pid: int) -> float:
    """When a process started, in seconds since 1970; 0 when there is none. Tells a re-used pid from the old one."""
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except psutil.NoSuchProcess:
        return 0.0


def stamp() -> str:
    """Now, as names of folders and runs show it."""
    return time.strftime("%Y%m%d-%H%M%S")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root()), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
