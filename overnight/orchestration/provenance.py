"""Provenance of a run: the code, its uncommitted changes, the packages, the machine."""

import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from overnight.gpu.card import Card
from overnight.paths import root
from overnight.processes import Identity

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
    return {
        **Identity.mine().tags(),
        "card": "none (virtual)" if card.virtual else f"{card.name}, driver {card.driver}",
        "mlflow.source.git.commit": commit(),
    }


def versions() -> dict[str, str]:
    found = dict[str, str]()
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[f"version/{name}"] = version(name)
    return found


def commit() -> str:
    """Of the checkout, with '+' when tracked files differ from it; empty outside git."""
    head = _git("rev-parse", "HEAD").strip()
    return f"{head}+" if head and dirty_diff() else head


@cache
def dirty_diff() -> str:
    text = _git("diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", "Makefile")
    return text if len(text) <= MAX_DIFF else text[:MAX_DIFF] + "\n... cut at 1 MB\n"


def _git(*words: str) -> str:
    command = ["git", "-C", str(root()), *words]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    return ""
