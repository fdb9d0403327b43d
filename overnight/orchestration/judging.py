"""A model that a step returned: registered, scored beside the champion in a child of its own, promoted.

Whatever goes wrong here is a sentence in the run's note: the training has succeeded, and the champion stays.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from overnight.artifact import Artifact
from overnight.best_effort import call_until_stopped
from overnight.config import Experiment, parts_of
from overnight.data.entry import Entry
from overnight.errors import BadInput, OvernightError, Stopped, one_line
from overnight.files import source_sha256, tree_sha256
from overnight.night.evidence import level
from overnight.night.gate import PRINCIPLE, JudgeParams, Verdict, account_of, decide, judge
from overnight.night.key import covered_files
from overnight.orchestration import provenance
from overnight.orchestration.checks import entries
from overnight.orchestration.launcher import Launcher, Stop
from overnight.orchestration.protocol import StepSpec
from overnight.orchestration.seeds import PREFIX as SEED
from overnight.paths import state
from overnight.step import Step, flow_names
from overnight.tracking.client import Tracker, mlflow_error
from overnight.tracking.models import MODEL_ID, artifact_in, fetch_model
from overnight.tracking.registry import (
    EVIDENCE,
    FOLDER,
    STEP,
    Model,
    Registry,
    Version,
    model_name,
    name_problem,
)
from overnight.tracking.uploader import Uploader

T = TypeVar("T")
PATIENCE_S = 20.0  # for the registry
NONE = "overnight models` lists the versions, `overnight promote NAME@VERSION` chooses one"


class NotJudged(OvernightError):
    """The champion stays; the message says why and what to do."""


@dataclass
class Contest:
    """folder: of the training's attempt; log: takes what the judging child prints."""

    experiment: Experiment
    label: str
    step: Step[Any, Any]
    key: str
    arguments: Sequence[Any]
    model: Artifact
    folder: Path
    uploader: Uploader
    log: Callable[[str], None]

    def hold(self, launcher: Launcher, stop: Stop) -> dict[str, Any]:
        """What the report says: name, champion (its version), promotes, reason, and the figures."""
        part = part_of(self.experiment, self.label)
        name = model_name(part.name)
        facts: dict[str, Any] = {"name": name, "champion": 0, "promotes": False}
        try:
            standing = self._standing(name, part.flow, stop)
            if standing and standing.tags.get(STEP, self.step.address) != self.step.address:
                name = facts["name"] = model_name(f"{name}-{self.step.name}")
                standing = self._standing(name, part.flow, stop)
            self._register(name, part)
            facts |= self._judged(name, standing, part, launcher, stop)
        except (OvernightError, OSError, ValueError, mlflow_error()) as error:
            facts["reason"] = (
                str(error) if isinstance(error, OvernightError) else f"not judged: {one_line(error)}"
            )
        principle = PRINCIPLE.format(alpha=part.values.gate.alpha) if "look" in facts else ""
        text = f"Model {name}: {facts['reason']}. {principle}".strip()
        self.uploader.log({"event": "note", "text": text, "at": time.time()})
        return facts

    def _standing(self, name: str, flow: str, stop: Stop) -> Model | None:
        """The registered model. Raises NotJudged where MLflow does not answer, or another flow has it."""
        until = time.monotonic() + PATIENCE_S
        registry = Registry(self.uploader.tracker)
        try:
            if not self.uploader.run_id:
                raise Stopped("its run is not open")
            found = call_until_stopped(
                lambda: registry.find(name), lambda: stop() or time.monotonic() > until, 0.0
            )
        except (OSError, Stopped, mlflow_error()):
            self._register(name, Part(name, flow, self.experiment))
            self._first(name, None)
            raise NotJudged(
                "not judged, since MLflow does not answer; it is registered when it does, and is the "
                f"champion if it is the first; else `overnight promote {name}@VERSION` makes it the champion"
            ) from None
        problem = name_problem(found, flow) if found else ""
        if problem:
            raise NotJudged(f"not registered: {problem}")
        return found

    def _register(self, name: str, part: "Part") -> None:
        data = {f"overnight.data.{e.name}": _digest(e) for e in entries(part.values) if isinstance(e, Entry)}
        licences = {f"overnight.licence.{e.name}": e.licence for e in entries(part.values) if e.licence}
        inputs = {f"overnight.input.{a.kind}": a.digest for a in self.arguments if isinstance(a, Artifact)}
        code = {
            "overnight.code": source_sha256(covered_files(self.step)),
            "overnight.commit": provenance.commit(),
        }
        place = self.model.path.resolve()
        home = state().resolve()
        tags = {
            STEP: self.step.address,
            "overnight.key": self.key,
            "overnight.spec": self.model.spec.model_dump_json(),
            FOLDER: str(place.relative_to(home) if place.is_relative_to(home) else place),
            **code,
            **data,
            **licences,
            **inputs,
        }
        event = {"name": name, "digest": self.model.digest, "flow": part.flow, "tags": tags}
        self.uploader.log({"event": "register", **event, "at": time.time()})

    def _judged(
        self, name: str, standing: Model | None, part: "Part", launcher: Launcher, stop: Stop
    ) -> dict[str, Any]:
        champion = standing.champion if standing else None
        if standing is None or champion is None:
            return self._first(name, standing)
        if champion.digest == self.model.digest:
            return {
                "champion": champion.number,
                "reason": f"it is the champion, version {champion.number}, again",
            }
        gate = part.values.gate
        account = account_of(standing.account, time.time())
        account["looks"] += 1
        spent = level(account["looks"], gate.alpha)
        found: dict[str, Any] = {"level": spent}
        if spent:
            found = self._scored(champion, JudgeParams(gate=gate, level=spent), launcher, stop)
        kept = self._kept(standing, champion, found)
        found = kept or {**found, "look": account["looks"], "champion": champion.digest}
        verdict = decide(found, gate)
        reason = self._in_words(verdict, champion, found, bool(kept))
        if not kept:
            self._conclude(name, champion.number, verdict, {**found, "why": verdict.reason}, account)
        figures = {k: v for k, v in found.items() if k not in ("champion", "test_set")}
        return {**figures, "champion": champion.number, "promotes": verdict.promotes, "reason": reason}

    def _first(self, name: str, standing: Model | None) -> dict[str, Any]:
        """Without a champion: the first model becomes it, unless a person removed the alias."""
        last = standing.last_champion() if standing else None
        if last is not None:
            raise NotJudged(
                f"not judged: the alias champion of {name} was removed; version {last.number} had it. "
                f"`overnight promote {name}@{last.number}` puts it back, or takes another version"
            )
        reason = "the first model of this name is the champion, without a contest"
        account = account_of(standing.account if standing else {}, time.time())
        self._conclude(name, 0, Verdict(True, reason), {"why": reason}, account)
        return {"promotes": True, "reason": reason}

    def _conclude(
        self, name: str, former: int, verdict: Verdict, evidence: dict[str, Any], account: dict[str, Any]
    ) -> None:
        event = {"name": name, "digest": self.model.digest, "former": former, "promotes": verdict.promotes}
        more = {"evidence": evidence, "account": account, "at": time.time()}
        self.uploader.log({"event": "judged", **event, **more})

    def _kept(self, standing: Model, champion: Version, found: dict[str, Any]) -> dict[str, Any]:
        """The evidence of this model against this champion on this test set, of an earlier look."""
        before = standing.of_digest(self.model.digest)
        evidence = before.facts(EVIDENCE) if before else {}
        same = evidence.get("champion") == champion.digest and evidence.get("test_set") == found.get(
            "test_set"
        )
        return evidence if same and "test_set" in found else {}

    def _scored(
        self, champion: Version, params: JudgeParams, launcher: Launcher, stop: Stop
    ) -> dict[str, Any]:
        """What the judging child saved. Raises NotJudged."""
        if stop():
            raise NotJudged(f"not judged: {stop.reason}")
        folder = self.folder / "judge"
        folder.mkdir(exist_ok=True)
        other = champion_folder(self.uploader.tracker, champion)
        if other is None:
            raise NotJudged(
                f"not judged: the champion, version {champion.number}, is gone: neither "
                f".overnight/{champion.tags.get(FOLDER, '')} nor MLflow has it; `{NONE}"
            )
        old = Artifact(kind="model", path=other, digest=champion.digest)
        given = [one.model_dump(mode="json") for one in self.arguments if isinstance(one, Artifact)]
        spec = StepSpec(
            step=judge.address,
            label=f"{self.label}-judge",
            experiment=str(self.experiment.name),
            arguments=[
                params.model_dump(mode="json"),
                *(a.model_dump(mode="json") for a in (old, self.model)),
                given,
            ],
            seed=self.experiment.seed,
            key=self.key,
        )
        result = launcher.run(folder, spec, stop, Lines(self.log))
        if result.code:
            missing = "; ".join(gone(champion))
            raise NotJudged(
                f"not judged: the champion, version {champion.number}, or the new model could not be scored: "
                f"{one_line(result.error)}{f' ({missing})' if missing else ''}; `{NONE}"
            )
        return Artifact.model_validate(result.value).meta()

    def _in_words(self, verdict: Verdict, champion: Version, found: dict[str, Any], kept: bool) -> str:
        result = "promoted" if verdict.promotes else "not promoted"
        look = f"look {found.get('look', 0)} of the year"
        again = ", which is not counted again: these two were judged on these items before" if kept else ""
        missing = "; ".join(gone(champion))
        return (
            f"{result}, against the champion, version {champion.number} ({look}{again}): {verdict.reason}"
            f"{f'; of the champion {missing}' if missing else ''}"
        )


@dataclass
class Lines:
    """A launcher's listener that passes on what the judging child says."""

    log_line: Callable[[str], None]

    def estimated(self, event: dict[str, Any]) -> None:
        """Not of the training's run."""

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] in ("note", "log", "wait"):
            self.log_line(event["text"])

    def log(self, line: str) -> None:
        self.log_line(line)


@dataclass(frozen=True)
class Part:
    """What of a config a step belongs to: the experiment, or one that is part of it."""

    name: str
    flow: str
    values: Experiment


def part_of(experiment: Experiment, label: str) -> Part:
    """The part that a step's label begins with: by its name in a night, or the field that holds it."""
    name = SEED.sub("", label).rpartition("/")[0]
    for field, value in experiment:
        for _key, child in parts_of(value):
            if isinstance(child, Experiment) and name and name in (child.name, field):
                return Part(name, child.flow or _flow(name, experiment), child)
    return Part(name or str(experiment.name), _flow(name, experiment), experiment)


def _flow(name: str, experiment: Experiment) -> str:
    return name if name in flow_names() else str(experiment.flow)


def champion_folder(tracker: Tracker, version: Version) -> Path | None:
    """Of its saved model: where it was made, else downloaded from MLflow; None: gone."""
    here = state() / version.tags.get(FOLDER, "-")
    if here.is_dir() and tree_sha256(here) == version.digest:
        return here
    logged = MODEL_ID.search(version.source)
    with suppress(OSError, BadInput, mlflow_error()):
        found = artifact_in(fetch_model(tracker, logged[0])) if logged else None
        if found is not None and tree_sha256(found) == version.digest:
            return found
    return None


def gone(version: Version) -> list[str]:
    """What of a version's data and code is not here any more."""
    found = list[str]()
    commit = version.tags.get("overnight.commit", "").rstrip("+")
    if commit and not provenance.has_commit(commit):
        found.append(f"the code (commit {commit[:10]}) is in no history here")
    prefix = "overnight.data."
    for tag in sorted(tag for tag in version.tags if tag.startswith(prefix)):
        name = tag.removeprefix(prefix)
        problem = _data_problem(name, version.tags[tag])
        found += [f"the data set {name} {problem}"] if problem else []
    return found


def _data_problem(name: str, digest: str) -> str:
    from overnight.data.dataset import load_entry

    try:
        entry = load_entry(name)
        if not entry.found():
            return "is gone"
        return "" if _digest(entry) == digest else "has changed"
    except (OvernightError, OSError, ValueError):
        return "has no entry any more"


def _digest(entry: Entry) -> str:
    return hashlib.sha256(repr(sorted(entry.identity().items())).encode()).hexdigest()
