"""MLflow's Model Registry as this project uses it: a version for each trained model, one the champion.

A promotion is written in this order: the account of the model's year (a tag of the registered model), the
evidence (a tag of the version), the alias `champion`. Each is one transaction of MLflow, and each may be
written again, so that a process that is killed at any of them leaves the alias on the old or the new version,
with its evidence.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from overnight.errors import BadInput, did_you_mean
from overnight.events import Json
from overnight.processes import user_name
from overnight.tracking.client import DIGEST, Tracker, mlflow_error

ALIAS = "champion"
FLOW = "overnight.flow"  # of a registered model: the flow whose experiments may add versions
STEP = "overnight.step"  # the address of the step that trains it
ACCOUNT = "overnight.account"  # JSON: the looks of its year
EVIDENCE = "overnight.evidence"  # of a version, JSON: what it was judged by
PROMOTED = "overnight.promoted"  # JSON: at, former, by, why
WITHDRAWN = "overnight.withdrawn"  # JSON: at, by, why
FOLDER = "overnight.artifact"  # of the saved model, relative to .overnight
TAKEN = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True)
class Version:
    number: int
    run_id: str
    source: str  # URI of its files in MLflow
    at: float  # unix time
    tags: dict[str, str]

    @property
    def digest(self) -> str:
        return self.tags.get(DIGEST, "")

    def facts(self, tag: str) -> Json:
        """The JSON of a tag; empty where there is none, or a person wrote something else into it."""
        return _json(self.tags.get(tag, ""))


@dataclass(frozen=True)
class Model:
    """A registered model as it stands; versions: the newest first."""

    name: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()

    @property
    def champion(self) -> Version | None:
        return self.version(self.aliases.get(ALIAS, 0))

    def version(self, number: int) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)

    @property
    def account(self) -> Json:
        return _json(self.tags.get(ACCOUNT, ""))

    def of_digest(self, digest: str) -> Version | None:
        return next((version for version in self.versions if version.digest == digest), None)

    def last_champion(self) -> Version | None:
        """The version that was promoted last, whatever the alias says now."""
        promoted = [one for one in self.versions if PROMOTED in one.tags and WITHDRAWN not in one.tags]
        return max(promoted, key=lambda one: float(one.facts(PROMOTED).get("at", 0)), default=None)


def _json(text: str) -> Json:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def model_name(name: str) -> str:
    """A name that the registry takes."""
    return re.sub(r"[/:%\"'`\\]", "-", name).strip() or "model"


class Registry:
    def __init__(self, tracker: Tracker) -> None:
        self.client = tracker.client
        self.tracker = tracker

    def names(self) -> list[str]:
        found = list[str]()
        page = self.client.search_registered_models(max_results=100)
        found += [model.name for model in page]
        while page.token:
            page = self.client.search_registered_models(max_results=100, page_token=page.token)
            found += [model.name for model in page]
        return sorted(found)

    def find(self, name: str) -> Model | None:
        try:
            found = self.client.get_registered_model(name)
        except mlflow_error() as error:
            if not self.tracker.refuses(error):
                raise
            return None
        aliases = {alias: int(number) for alias, number in (found.aliases or {}).items()}
        return Model(name, dict(found.tags or {}), aliases, self._versions(name))

    def existing(self, name: str) -> Model:
        """Raises BadInput for a name that the registry does not have."""
        model = self.find(name)
        if model is None:
            names = self.names()
            hint = did_you_mean(name, names) or f"; there are {', '.join(names) or 'none yet: train one'}"
            raise BadInput(f"{name}: the registry has no such model{hint}")
        return model

    def _versions(self, name: str) -> tuple[Version, ...]:
        wanted = f"name = '{name}'"
        found = list[Any]()
        page = self.client.search_model_versions(wanted, max_results=1000)
        found += page
        while page.token:
            page = self.client.search_model_versions(wanted, max_results=1000, page_token=page.token)
            found += page
        versions = [
            Version(
                int(one.version),
                one.run_id or "",
                one.source or "",
                (one.creation_timestamp or 0) / 1000,
                dict(one.tags or {}),
            )
            for one in found
        ]
        return tuple(sorted(versions, key=lambda version: -version.number))

    def take(self, run_id: str, event: Json) -> None:
        """Do what a queued event says. Raises ValueError where that can never be done."""
        if event["event"] == "register":
            self.register(run_id, event)
        else:
            self.judged(event)

    def register(self, run_id: str, event: Json) -> int:
        """Make a version of a model that a run has logged, unless the name has one of this digest.

        event: name, digest, flow, tags (of the version). Raises ValueError for a name of another flow, or a
        model that MLflow does not have.
        """
        name = event["name"]
        found = self.find(name) or self._create(name, event)
        problem = name_problem(found, event["flow"])
        if problem:
            raise ValueError(problem)
        known = found.of_digest(event["digest"])
        if known:
            return known.number
        logged = self._logged(run_id, event["digest"])
        if logged is None:
            raise ValueError(f"{name}: not registered, since its run has logged no model of this digest")
        made = self.client.create_model_version(
            name,
            logged.artifact_location,
            run_id=run_id,
            tags={DIGEST: event["digest"], **event["tags"]},
            await_creation_for=0,
            model_id=logged.model_id,
        )
        return int(made.version)

    def _create(self, name: str, event: Json) -> Model:
        tags = {FLOW: event["flow"], STEP: event["tags"].get(STEP, "")}
        try:
            self.client.create_registered_model(name, tags=tags)
        except mlflow_error() as error:
            if getattr(error, "error_code", "") != TAKEN:
                raise
        return self.find(name) or Model(name, tags)

    def _logged(self, run_id: str, digest: str) -> Any:
        outputs = self.client.get_run(run_id).outputs
        for one in outputs.model_outputs if outputs else []:
            model = self.client.get_logged_model(one.model_id)
            if model.tags.get(DIGEST) == digest:
                return model
        return None

    def judged(self, event: Json) -> None:
        """Write what a contest found; move the alias where it promotes and the champion is the one beaten.

        event: name, digest, evidence, account, former (number of the champion), promotes. former 0: the model
        is the champion if there is and was no other, else nothing is written.
        """
        name = event["name"]
        model = self.find(name)
        version = model.of_digest(event["digest"]) if model else None
        if model is None or version is None:
            raise ValueError(f"{name}: was judged, but has no version of this digest any more")
        now = model.champion.number if model.champion else 0
        last = model.last_champion()
        others = {now, last.number if last else 0} - {0, version.number}
        if event["former"] == 0 and others:
            return
        if model.account.get("looks", 0) < event["account"].get("looks", 0) or _is_newer(model, event):
            self.client.set_registered_model_tag(name, ACCOUNT, json.dumps(event["account"]))
        self._tag(name, version.number, EVIDENCE, event["evidence"])
        if event["promotes"] and now == event["former"] and WITHDRAWN not in version.tags:
            facts = {
                "at": event["at"],
                "former": now,
                "by": "the gate",
                "why": event["evidence"].get("why", ""),
            }
            self._promote(name, version.number, facts)

    def promote(self, name: str, number: int, why: str = "") -> int:
        """Make a version the champion by hand; the number of the former one, 0 for none. Raises BadInput."""
        model = self.existing(name)
        numbers = [version.number for version in model.versions]
        if number not in numbers:
            there = ", ".join(map(str, sorted(numbers))) or "none"
            raise BadInput(f"{name}@{number}: there is no such version; there are {there}")
        former = model.champion.number if model.champion else 0
        if former == number:
            raise BadInput(
                f"{name}@{number}: is the champion already; `overnight models {name}` lists the others"
            )
        if any(version.number == number and WITHDRAWN in version.tags for version in model.versions):
            self.client.delete_model_version_tag(name, str(number), WITHDRAWN)
        self._promote(name, number, {"at": time.time(), "former": former, "by": user_name(), "why": why})
        return former

    def rollback(self, name: str, why: str = "") -> tuple[int, int]:
        """Return to the champion before; (from, to). Raises BadInput where there was none."""
        model = self.existing(name)
        last = model.champion or model.last_champion()
        former = int(last.facts(PROMOTED).get("former") or 0) if last else 0
        if model.champion is None and last is not None:
            former = last.number  # its alias was removed by hand
        there = [version.number for version in model.versions]
        if last is None or former not in there:
            gone = (
                f"version {former}, the champion before, was deleted"
                if former
                else "it never had another champion"
            )
            raise BadInput(
                f"{name}: cannot be rolled back: {gone}; `overnight promote {name}@VERSION` takes any of "
                f"{', '.join(map(str, sorted(there))) or 'its versions, of which there is none'}"
            )
        if former != last.number:
            self._tag(name, last.number, WITHDRAWN, {"at": time.time(), "by": user_name(), "why": why})
        self.client.set_registered_model_alias(name, ALIAS, str(former))
        return last.number, former

    def _promote(self, name: str, number: int, facts: Json) -> None:
        self._tag(name, number, PROMOTED, facts)
        self.client.set_registered_model_alias(name, ALIAS, str(number))

    def _tag(self, name: str, number: int, tag: str, facts: Mapping[str, Any]) -> None:
        self.client.set_model_version_tag(name, str(number), tag, json.dumps(facts, ensure_ascii=False))


def name_problem(model: Model, flow: str) -> str:
    """Why experiments of this flow may not add versions to a registered model; empty when they may."""
    theirs = model.tags.get(FLOW)
    if theirs == flow:
        return ""
    whose = f"one of the flow {theirs}" if theirs else "one that overnight did not make"
    return (
        f"{model.name}: the registry's model of this name is {whose}, this experiment is one of {flow}; "
        "give the experiment another name (`name: ...` in its config)"
    )


def _is_newer(model: Model, event: Json) -> bool:
    return float(model.account.get("began", 0)) < float(event["account"].get("began", 0))


def day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d")
