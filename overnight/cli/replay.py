"""`overnight replay`: run a recorded step again, and compare.

It runs with the arguments, the seed and the inputs that its folder holds, with today's code, libraries and
card, without a checkpoint; nothing is logged to MLflow.
"""

import math
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight import events
from overnight.artifact import Artifact
from overnight.errors import BadInput, one_line
from overnight.files import file_sha256, read_json, tree_sha256
from overnight.gpu.card import find as find_card
from overnight.night.changes import changed_parts
from overnight.night.failures import classify
from overnight.night.key import parts
from overnight.orchestration import seeds
from overnight.orchestration.attempt import PARTS
from overnight.orchestration.launcher import Local, Stop, log_tail, new_folder
from overnight.orchestration.protocol import StepResult, StepSpec
from overnight.orchestration.recorded import Recorded, scores_of
from overnight.orchestration.terminal import Display
from overnight.step import load_step

MOST = 4  # changed parts of a kind that are named
UNCOVERED = (
    "nothing in its key changed: a computation here is not reproducible, as sums in another order are; "
    "`seeds: 5` shows how far its scores vary"
)


class Shown:
    """A listener that shows the step in the terminal."""

    def __init__(self, display: Display, label: str) -> None:
        self.display = display
        self.row = display.add(label)
        display.change(self.row, "queued")

    def estimated(self, _event: dict[str, Any]) -> None:
        """Shown by `overnight fit`."""

    def event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if self.row.state == "queued" and kind not in ("param", "log", "wait"):
            self.display.change(self.row, "running")
        if kind == "progress":
            self.display.progress(self.row, event)
        elif kind in ("note", "log", "wait"):
            self.row.text = event["text"]

    def log(self, line: str) -> None:
        """It is in the step's folder."""


def replay(found: Recorded, display: Display) -> tuple[str, list[str]]:
    """The verdict, `bit-equal`, `within its seed interval` or `different`, and lines that say why.

    Raises BadInput when it cannot run again, or does not come to its end.
    """
    found = found.origin()
    spec = _spec(found)
    step = load_step(spec.step)
    arguments = step.from_json(spec.arguments)
    _check_inputs(arguments)
    card = find_card()
    before = read_json(found.folder / PARTS)
    now = parts(step, spec.seed, arguments, card)
    words = changed_parts(before or now, now)
    changed = "; ".join(f"{kind} {', '.join(names[:MOST])}" for kind, names in words.items())
    folder = new_folder(f"replay-{spec.label}")
    fresh = {"key": f"replay-{secrets.token_hex(8)}", "earlier": (), "logged_before": {}}
    listener = Shown(display, f"replay of {spec.label}")
    result = Local(card).run(folder, spec.model_copy(update=fresh), Stop(), listener)
    display.change(
        listener.row, "done" if result.code == 0 else "failed", result.error and one_line(result.error)
    )
    if result.code:
        failure = classify(result, log_tail(folder))
        why = f"; changed since: {changed}" if changed else ""
        raise BadInput(f"the replay failed: {result.error}\n{failure}{why}")
    verdict, lines = compare(found, result, folder, changed)
    if verdict != "different":
        shutil.rmtree(folder, ignore_errors=True)
    return verdict, lines


def _spec(found: Recorded) -> StepSpec:
    if found.spec is None or found.result is None:
        raise BadInput(f"{found.name} of {found.began} never ran to an end; replay takes a finished step")
    if found.result.code:
        raise BadInput(f"{found.name} of {found.began} failed; replay takes a finished step")
    return found.spec


def _check_inputs(arguments: list[Any]) -> None:
    """Raises BadInput for inputs that are gone or changed."""
    problems = []
    for given in arguments:
        if isinstance(given, Artifact):
            there = given.path.is_dir()
            if not there or tree_sha256(given.path) != given.digest:
                how = "was changed" if there else "was removed"
                problems.append(f"its input {given.kind}, {given.path}, {how}; run its config again instead")
    if problems:
        raise BadInput(problems)


def compare(found: Recorded, now: StepResult, folder: Path, changed: str) -> tuple[str, list[str]]:
    """Compare what a step made with what it makes now, in `folder`."""
    before = found.scores
    after = scores_of(events.read_all(folder / events.CHILD))
    old, new = (Artifact.model_validate(r.value) if r and r.value else None for r in (found.result, now))
    if old is not None:  # the checkout may have been moved
        old = old.model_copy(update={"path": found.folder / "out" / old.kind})
    same_scores = before.keys() == after.keys() and all(_equal(before[k], after[k]) for k in before)
    if same_scores and (old and old.digest) == (new and new.digest):
        made = f"its {new.kind} has the same digest ({new.digest[:12]})" if new else "it makes no artifact"
        return "bit-equal", [f"{made}, and {len(after)} scores are the same"]
    lines = [*_file_lines(old, new), *([f"all {len(after)} scores are the same"] if same_scores else [])]
    spreads = _spreads(found)
    outside = list[str]()
    for name in sorted({**before, **after}):
        was, now_is = before.get(name, math.nan), after.get(name, math.nan)
        if not _equal(was, now_is):
            low, high = spreads[name].one_more() if name in spreads else (math.nan, math.nan)
            inside = low <= now_is <= high
            said = f"; its {spreads[name].n} seeds give {low:.6g} to {high:.6g}" if name in spreads else ""
            lines.append(f"{name} {was:.6g} -> {now_is:.6g}{said}")
            outside += [] if inside else [name]
    why = f"changed since: {changed}" if changed else UNCOVERED
    return "different" if outside or not spreads else "within its seed interval", [*lines, why]


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _spreads(found: Recorded) -> dict[str, seeds.Spread]:
    """By metric, over the siblings of the step that ran with other seeds: those of a config with `seeds`."""
    own = Recorded.read(Path(found.record.parent))
    label = seeds.PREFIX.sub("", found.record.label)
    siblings = [s for s in own.steps() if seeds.PREFIX.sub("", s.record.label) == label] if own else []
    by_seed = {s.record.label: s.scores for s in siblings}  # the last attempt
    every = {f"{at}/{name}": v for at, scores in by_seed.items() for name, v in scores.items()}
    return {name.removeprefix(f"{label}/"): one for name, one in seeds.spreads(every).items()}


def _file_lines(old: Artifact | None, new: Artifact | None) -> Iterator[str]:
    """Which files of the artifact differ, and of arrays by how much."""
    if old is None or new is None or not old.path.is_dir():
        yield "the recorded artifact was removed, so that only its digest can be compared"
        return
    names = {file.relative_to(a.path) for a in (old, new) for file in a.path.rglob("*") if file.is_file()}
    for name in sorted(names):
        one, other = old.path / name, new.path / name
        if not (one.is_file() and other.is_file()):
            yield f"{name}: only {'then' if one.is_file() else 'now'}"
        elif file_sha256(one) != file_sha256(other):
            yield f"{name}: {_array_words(one, other) if name.suffix == '.safetensors' else 'other bytes'}"


def _array_words(one: Path, other: Path) -> str:
    import numpy as np
    from safetensors.numpy import load_file

    before, after = load_file(one), load_file(other)
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        return "arrays of other names or shapes"
    gaps = {n: np.abs(before[n].astype(float) - after[n].astype(float)).max(initial=0.0) for n in before}
    differing = [gap for gap in gaps.values() if gap > 0]
    return f"{len(differing)} of {len(gaps)} arrays differ, by at most {max(differing, default=0.0):.2g}"
