"""`overnight diff`: what differs between two runs, in a few lines."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from overnight.files import read_json
from overnight.orchestration.attempt import PARTS
from overnight.orchestration.recorded import Recorded

SHOWN = 40  # characters of a value
SAME = 1e-12  # relative difference of two scores that are called equal
KINDS = ("seed", "values", "data", "code", "versions", "choices", "scores", "steps")


def diff(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    """Kind of difference -> what differs, as `name old -> new`."""
    found = _of_steps(one, other) if one.is_step and other.is_step else _of_experiments(one, other)
    return {kind: found[kind] for kind in KINDS if found.get(kind)}


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """What differs between the parts of two keys (night.key.parts), by its kind."""
    found = dict[str, list[str]]()
    for name, old, new in _changes(before, after):
        kind, _, rest = name.partition(" ")
        if kind == "argument":
            for leaf, *values in _changes(_leaves(old, rest), _leaves(new, rest)):
                is_data = leaf.rpartition(".")[2] in ("digest", "artifact") or ".files." in leaf
                found.setdefault("data" if is_data else "values", []).append(_arrow(leaf, *values))
        elif kind in ("code", "file"):
            how = "" if new else " (removed)"
            word = rest + (how if old else " (new)")
            found.setdefault("code" if kind == "code" else "data", []).append(word)
        else:
            of = {"version": "versions", "choice": "choices", "seed": "seed"}.get(kind, "values")
            found.setdefault(of, []).append(_arrow(rest or "", old, new).strip())
    return found


def _of_steps(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    found = changed_parts(_parts(one), _parts(other))
    return {**found, "scores": _score_changes(one.scores, other.scores)}


def _of_experiments(one: Recorded, other: Recorded) -> dict[str, list[str]]:
    """Of what both were given; of steps of the same label, what differs and is not said by that already."""
    values = [_arrow(*change) for change in _changes(_config(one), _config(other))]
    versions = [
        _arrow(name.removeprefix("version/"), old, new)
        for name, old, new in _changes(one.record.params, other.record.params)
        if name.startswith("version/")
    ]
    commits = [one.record.tags.get("mlflow.source.git.commit", "")[:13] for one in (one, other)]
    found = {"values": values, "versions": versions, "code": []}
    if commits[0] != commits[1]:
        found["code"] = [_arrow("commit", *commits)]
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
    return {name: value for name, value in _flat(values, "") if name != "name"}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _leaves(text: str | None, name: str) -> dict[str, Any]:
    return dict(_flat(json.loads(text or "null"), name))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _score_changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    found = []
    for name, old, new in _changes(before, after):
        if old is None or new is None:
            found.append(_arrow(name, old, new))
        elif abs(new - old) > SAME * max(abs(old), abs(new)):
            found.append(f"{name} {old:.6g} -> {new:.6g} ({new - old:+.2g})")
    return found


def _arrow(name: str, old: Any, new: Any) -> str:
    return f"{name} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):  # a digest
        return text[:12]
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
