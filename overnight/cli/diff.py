"""`overnight diff`: what differs between two runs, in a few lines."""

import json
from collections.abc import Mapping
from typing import Any

from overnight.files import read_json
from overnight.night.changes import KINDS as OF_A_KEY
from overnight.night.changes import arrow, changed_parts, changes, flat
from overnight.orchestration.attempt import PARTS
from overnight.orchestration.recorded import Recorded

SAME = 1e-12  # relative difference of two scores that are called equal
KINDS = (*OF_A_KEY, "scores", "steps")


def diff(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    """Kind of difference -> what differs, as `name old -> new`."""
    found = _of_steps(one, other) if one.is_step and other.is_step else _of_experiments(one, other)
    return {kind: found[kind] for kind in KINDS if found.get(kind)}


def _of_steps(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    found = changed_parts(_parts(one), _parts(other))
    return {**found, "scores": _score_changes(one.scores, other.scores)}


def _of_experiments(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    """Of what both were given; of steps of the same label, what differs and is not said by that already."""
    values = [arrow(*change) for change in changes(_config(one), _config(other))]
    versions = [
        arrow(name.removeprefix("version/"), old, new)
        for name, old, new in changes(one.record.params, other.record.params)
        if name.startswith("version/")
    ]
    commits = [one.record.tags.get("mlflow.source.git.commit", "")[:13] for one in (one, other)]
    found = {"values": values, "versions": versions, "code": []}
    if commits[0] != commits[1]:
        found["code"] = [arrow("commit", *commits)]
    before = {step.record.label: step for step in one.steps()}
    after = {step.record.label: step for step in other.steps()}
    for label in before.keys() & after.keys():
        inner = _of_steps(before[label], after[label])
        for kind in ("data", "code", "choices"):
            known = found.setdefault(kind, [])
            known += [word for word in inner.get(kind, []) if word not in known]
        found.setdefault("scores", []).extend(f"{label} {word}" for word in inner["scores"])
    missing = [f"{label} only in the first" for label in before.keys() - after.keys()]
    missing += [f"{label} only in the second" for label in after.keys() - before.keys()]
    return {**found, "steps": sorted(missing)}


def _parts(one: Recorded) -> dict[str, str]:
    """Of its key; of an older run what else its folder says."""
    parts = read_json(one.folder / PARTS)
    if parts or one.spec is None:
        return parts
    arguments = {f"argument {n}": json.dumps(value) for n, value in enumerate(one.spec.arguments)}
    return {"step": one.spec.step, "seed": str(one.spec.seed), **arguments}


def _config(one: Recorded) -> dict[str, Any]:
    values = read_json(one.folder / "resolved.json")
    return {name: value for name, value in flat(values, "") if name != "name"}


def _score_changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    found = []
    for name, old, new in changes(before, after):
        if old is None or new is None:
            found.append(arrow(name, old, new))
        elif abs(new - old) > SAME * max(abs(old), abs(new)):
            found.append(f"{name} {old:.6g} -> {new:.6g} ({new - old:+.2g})")
    return found
