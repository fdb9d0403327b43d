"""What differs between two runs of a step, by the parts of their keys (night/key.py), in words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 40  # characters of a value
MOST = 4  # changes that are named
KINDS = ("seed", "values", "data", "versions", "choices", "code")


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """What differs between the parts of two keys (night.key.parts), by its kind."""
    found = dict[str, list[str]]()
    for name, old, new in changes(before, after):
        kind, _, rest = name.partition(" ")
        if kind == "argument":
            for leaf, *values in changes(_leaves(old, rest), _leaves(new, rest)):
                is_data = leaf.rpartition(".")[2] in ("digest", "artifact") or ".files." in leaf
                found.setdefault("data" if is_data else "values", []).append(arrow(leaf, *values))
        elif kind in ("code", "file"):
            how = "" if new else " (removed)"
            word = rest + (how if old else " (new)")
            found.setdefault("code" if kind == "code" else "data", []).append(word)
        else:
            of = {"version": "versions", "choice": "choices", "seed": "seed"}.get(kind, "values")
            found.setdefault(of, []).append(arrow(rest or "", old, new).strip())
    return found


def in_words(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What differs, in a line: `params.epochs 3 -> 4, tasks/vision/cnn.py`."""
    found = changed_parts(before, after)
    words = [word if kind != "seed" else f"seed {word}" for kind in KINDS for word in found.get(kind, ())]
    more = len(words) - MOST
    return ", ".join([*words[:MOST], *([f"and {more} more"] if more > 0 else [])])


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _leaves(text: str | None, name: str) -> dict[str, Any]:
    return dict(flat(json.loads(text or "null"), name))


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def arrow(name: str, old: Any, new: Any) -> str:
    """`name old -> new`; of digests, which say nothing to people, the name alone."""
    if _is_digest(old) and _is_digest(new):
        return name
    return f"{name} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
