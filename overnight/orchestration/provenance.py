"""Provenance of a run: the code, its uncommitted changes, the packages, the machine."""

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from overnight.config import Experiment
from overnight.gpu.card import Card
from overnight.orchestration.launcher import new_folder
from overnight.paths import root, shown
from overnight.processes import Identity
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import FOLDER, Uploader

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


def has_commit(name: str) -> bool:
    """Whether a commit is in the checkout's history."""
    return bool(_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip())


@cache
def dirty_diff() -> str:
    text = _git("diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", "Makefile")
    return text if len(text) <= MAX_DIFF else text[:MAX_DIFF] + "\n... cut at 1 MB\n"


def _git(*words: str) -> str:
    command = ["git", "-C", str(root()), *words]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    return ""


def own_run(
    tracker: Tracker, experiment: Experiment, tags: dict[str, str], path: Path, overrides: Sequence[str]
) -> Uploader:
    """Of the experiment itself, with its config as it was written and as it was read."""
    folder = new_folder(f"{experiment.name}-run")
    params = {"seed": str(experiment.seed), "config": shown(path), "overrides": " ".join(overrides)}
    record = Record(
        uri=tracker.uri,
        experiment=str(experiment.name),
        label=f"{experiment.name} {time.strftime('%Y-%m-%d %H:%M')}",
        tags={**tags, FOLDER: str(folder)},
        params={**params, **versions()},
    )
    own = Uploader(tracker, folder, record)
    files = {
        path.name: path.read_text(encoding="utf-8"),
        "resolved.json": experiment.model_dump_json(indent=1),
        "uncommitted.diff": dirty_diff(),
    }
    for name in filter(files.get, files):
        (folder / name).write_text(files[name], encoding="utf-8")
        own.log({"event": "publish", "path": str(folder / name), "folder": "config", "at": time.time()})
    return own
