"""What the disk keeps: `keep:` of a nightly config; `overnight clean` and each night remove the rest.

Never removed: what an open run may have found or made, what a checkpoint goes on from, what MLflow lacks
yet, and the results behind a model version with an alias (a champion), with those that they were made of.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from overnight import locks
from overnight.best_effort import best_effort
from overnight.config import Values
from overnight.files import read_json
from overnight.night import results
from overnight.night.results import Result
from overnight.paths import shown, state, steps
from overnight.processes import Identity
from overnight.tracking import backlog
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.registry import PROMOTED, Model, Registry, Version

DAY_S = 86400.0
STAMP = "%Y%m%d-%H%M%S"  # how the name of a step's folder begins
COPIES = (
    "models",
    "served",
    "unpacked",
    "converted",
    "predictions",
    "reports",
)  # made again when they are asked for
MARGIN_S = 3600.0  # the clock of such a name may be put back


class Keep(Values):
    """How much is kept, beside what is needed."""

    steps: int = Field(
        60, ge=1, description="days: folders of steps, unpacked data, copies of models, reports"
    )
    checkpoints: int = Field(14, ge=1, description="days: of trainings that did not end")
    results: int = Field(10, ge=1, description="of each step: the newest used, with their artifacts")
    versions: int = Field(10, ge=1, description="of each registered model, beside champions")


@dataclass(frozen=True)
class Removal:
    """A path to remove. used: unix time of its last change.

    kind: checkpoint, result, artifact, step or copy.
    """

    kind: str
    path: Path
    why: str
    mib: float
    used: float

    def row(self) -> dict[str, Any]:
        return {"what": self.kind, "place": shown(self.path), "why": self.why, "MiB": round(self.mib, 1)}


@dataclass
class Needed:
    """What must stay. since: the start of the oldest open run; texts: tags of the champions."""

    since: float = float("inf")
    texts: str = ""
    folders: set[str] = field(default_factory=set)

    def result(self, one: Result) -> bool:
        in_use = results.file_of(one.key).stat().st_mtime >= self.since - MARGIN_S
        return in_use or one.key in self.texts or bool(one.artifact and one.artifact.digest in self.texts)

    def folder(self, path: Path) -> bool:
        named = path.name in self.folders or path.name in self.texts
        return named or began(path) >= self.since - MARGIN_S


def clean(keep: Keep, tracker: Tracker, dry_run: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """Remove what is beyond `keep`: a row for each thing, and what could not be done, with the reason.

    While MLflow does not answer, its champions are unknown: results and model versions stay.
    """
    problems = list[str]()
    texts: str | None = None
    old = list[tuple[str, Version]]()
    sources = set[str]()
    registry = Registry(tracker)
    with best_effort(lambda why: problems.append(f"results and models stay: MLflow does not answer: {why}")):
        kept = list[Version]()
        for model in filter(None, map(registry.find, registry.names())):
            needed = needed_versions(model)
            late = {one.number for one in model.versions[keep.versions :]} - needed
            old += [(model.name, one) for one in model.versions if one.number in late]
            sources |= {one.source for one in model.versions if one.number not in late}
            kept += [one for one in model.versions if one.number in needed]
        texts = json.dumps([one.tags for one in kept])
    removals = plan(keep, texts, time.time())
    why = f"beyond the newest {keep.versions}, and no champion"
    rows = [one.row() for one in removals]
    rows += [
        {"what": "version", "place": f"{name}@{one.number}", "why": why, "MiB": None} for name, one in old
    ]
    if not dry_run:
        problems += remove(removals)
        problems += remove_versions(registry, old, sources)
    return rows, problems


def clean_after(keep: Keep, tracker: Tracker, say: Callable[[str], object]) -> None:
    """Remove what a night does not keep; nothing of it fails the night."""
    with best_effort(say):
        rows, problems = clean(keep, tracker)
        mib = sum(row["MiB"] or 0.0 for row in rows)
        for line in [f"removed by `keep`: {len(rows)} things, {mib:,.0f} MiB"] * bool(rows) + problems:
            say(line)


def began(folder: Path) -> float:
    """When a step began, by its folder's name."""
    try:
        return time.mktime(time.strptime("-".join(folder.name.split("-")[:2]), STAMP))
    except ValueError:
        return folder.stat().st_mtime


def plan(keep: Keep, texts: str | None, now: float) -> list[Removal]:
    """What is to be removed but model versions, in this order.

    texts: tags of the champions; None when they are unknown: results and artifacts stay.
    """
    checkpoints = list(_checkpoints(now - keep.checkpoints * DAY_S))
    gone = {removal.path.name for removal in checkpoints}
    needed = _needed(gone, texts or "")
    old = [] if texts is None else _old_results(keep.results, needed)
    found = [*checkpoints, *old]
    used = _used(removal.path.stem for removal in old)
    for folder in sorted(steps().glob("*")):
        if not needed.folder(folder) and folder.name not in used:
            found += _of_step(folder, now, keep.steps, texts is not None)
    return [*found, *_copies(now, keep.steps)]


def _copies(now: float, days: int) -> Iterator[Removal]:
    for path in sorted(path for name in COPIES for path in (state() / name).glob("*")):
        age = now - path.stat().st_mtime
        if age > days * DAY_S:
            yield _removal("copy", path, f"not used for {age / DAY_S:.0f} days")


def _of_step(folder: Path, now: float, days: int, with_artifacts: bool) -> Iterator[Removal]:
    age = now - began(folder)
    if age > days * DAY_S:
        yield _removal("step", folder, f"{age / DAY_S:.0f} days old")
    elif with_artifacts and age > DAY_S and (folder / "out").is_dir():
        yield _removal("artifact", folder / "out", "no remembered result uses it")


def _used(but: Iterable[str] = ()) -> set[str]:
    """Names of the step folders that hold the artifacts of remembered results but these keys."""
    gone = set(but)
    kept = (one.artifact for one in results.all_results() if one.key not in gone)
    return {_top(artifact.path) for artifact in kept if artifact}


def _top(artifact: Path) -> str:
    """The step's folder that an artifact lies in; empty outside of them."""
    home = steps().resolve()
    path = artifact.resolve()
    return path.relative_to(home).parts[0] if path.is_relative_to(home) else ""


def _checkpoints(before: float) -> Iterator[Removal]:
    for folder in sorted((state() / "checkpoints").glob("*")):
        touched = max((path.stat().st_mtime for path in folder.rglob("*")), default=folder.stat().st_mtime)
        if touched < before and locks.holder(folder / "lock") is None:
            yield _removal(
                "checkpoint", folder, f"not touched for {(time.time() - touched) / DAY_S:.0f} days"
            )


def _needed(gone: Iterable[str], texts: str) -> Needed:
    needed = Needed(texts=texts)
    for file in (state() / "checkpoints").glob("*/run.json"):
        if file.parent.name not in gone:
            needed.folders |= {Path(one).name for one in read_json(file).get("folders", [])}
    for folder in steps().glob("*"):
        record = Record.read(folder)
        identity = Identity.from_tags(record.tags) if record and record.end is None else None
        if identity is not None and identity.alive():
            needed.since = min(needed.since, began(folder))
    needed.folders |= {path.stem for path in backlog.entries()}
    return needed


def _old_results(most: int, needed: Needed) -> list[Removal]:
    every = {one.key: one for one in results.all_results()}
    by_step = dict[tuple[str, str, str], list[Result]]()
    for one in sorted(every.values(), key=lambda one: -results.file_of(one.key).stat().st_mtime):
        by_step.setdefault((one.experiment, one.label, one.step), []).append(one)
    kept = {one.key for group in by_step.values() for one in group[:most]}
    kept |= _with_upstream({one.key for one in every.values() if needed.result(one)}, every)
    why = f"beyond the newest {most} of its step"
    return [
        _removal("result", results.file_of(one.key), f"{one.label}: {why}")
        for one in every.values()
        if one.key not in kept
    ]


def _with_upstream(keys: set[str], every: dict[str, Result]) -> set[str]:
    """The keys, and those of the results that they were made of."""
    by_digest = {one.artifact.digest: one.key for one in every.values() if one.artifact}
    found = set(keys)
    waiting = list(keys)
    while waiting:
        parts = json.dumps(every[waiting.pop()].parts)
        above = {key for digest, key in by_digest.items() if digest in parts} - found
        found |= above
        waiting += above
    return found


def _removal(kind: str, path: Path, why: str) -> Removal:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    size = sum(file.stat().st_size for file in files)
    return Removal(kind, path, why, size / (1 << 20), path.stat().st_mtime)


def remove(removals: Iterable[Removal]) -> list[str]:
    """Remove them, but for what a run has begun to use since; returns what could not be, with the reason."""
    problems = list[str]()
    used: set[str] | None = None
    for one in removals:
        if one.kind in ("artifact", "step"):  # they come after the results
            used = _used() if used is None else used
            if _top(one.path) in used:
                continue
        try:
            _remove(one)
        except locks.Held:  # a training goes on from it now
            continue
        except OSError as error:
            problems.append(f"{shown(one.path)}: {error.strerror}")
    return problems


def _remove(one: Removal) -> None:
    if one.kind == "checkpoint":
        with locks.hold(one.path / "lock", "overnight clean"):
            shutil.rmtree(one.path)
    elif one.kind == "result":
        with results.locked():
            if one.path.stat().st_mtime == one.used:
                one.path.unlink()
    elif one.path.is_file():
        one.path.unlink()
    else:
        shutil.rmtree(one.path)


# ------------------------------------------------------------------------------------------------ models


def needed_versions(model: Model) -> set[int]:
    """Those with an alias, the last champion, and those that a rollback would return to."""
    needed = {*model.aliases.values()}
    last = model.last_champion()
    needed |= {last.number} if last else set()
    promoted = (version.facts(PROMOTED) for version in model.versions if version.number in needed)
    return needed | {int(facts.get("former") or 0) for facts in promoted}


def remove_versions(registry: Registry, old: Sequence[tuple[str, Version]], others: set[str]) -> list[str]:
    """Remove versions, and the files of their models; returns what failed. others: sources that stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    problems = list[str]()
    for name, version in old:
        with best_effort(problems.append):  # the next night tries again
            registry.client.delete_model_version(name, str(version.number))
            model_id = version.source.removeprefix("models:/")
            if model_id != version.source and version.source not in others:
                place = registry.client.get_logged_model(model_id).artifact_location
                registry.client.delete_logged_model(model_id)
                files: Any = get_artifact_repository(place, tracking_uri=registry.tracker.uri)
                files.delete_artifacts()
    return problems
