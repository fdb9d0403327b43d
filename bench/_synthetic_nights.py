"""Nights that were never run: records for a report, and beside each what is true of it.

Kills, failures of each class, skips, promotions, out of memory, other programs and odd texts are drawn with a
seed; the truth is written down as it is drawn, never read back from a record.
"""

import random
import time
from dataclasses import dataclass, field
from typing import Any

from overnight.gpu.timeline import Point
from overnight.memory.usage import Usage
from overnight.night import record
from overnight.night.record import CardRecord, Failure, NightRecord, StepRecord

FIRST = time.mktime((2026, 11, 1, 3, 30, 0, 0, 0, -1))
DAY_S = 86400
PRICE = 0.31
CARD = CardRecord(name="NVIDIA GeForce RTX 4070 Ti", total_mib=12282, budget_mib=11258)
STEPS = {  # label: (address, on the card, seconds, MiB, test score)
    "etl/join_tables": ("tasks.tabular.join:join_tables", True, 40, 3100, ""),
    "etl/fit_table": ("tasks.tabular.fit:fit_table", False, 65, 0, "test/auc"),
    "cifar10/load_images": ("tasks.vision.load:load_images", False, 30, 0, ""),
    "cifar10/train_cnn": ("tasks.vision.cnn:train_cnn", True, 1900, 6800, "test/accuracy"),
    "fashion/load_images": ("tasks.vision.load:load_images", False, 20, 0, ""),
    "fashion/train_cnn": ("tasks.vision.cnn:train_cnn", True, 900, 4200, "test/accuracy"),
    "cells/load_scenes": ("tasks.detection.scenes:load_scenes", False, 15, 0, ""),
    "cells/train_yolo": ("tasks.detection.yolo:train_yolo", True, 3600, 9400, "test/ap50"),
    "pages/train_gnn": ("tasks.graphs.nodes:train_gnn", True, 420, 2600, "test/accuracy"),
    "papers/train_gnn": ("tasks.graphs.nodes:train_gnn", True, 60, 900, "test/accuracy"),
    "planes/train_gnn": ("tasks.graphs.nodes:train_gnn", True, 380, 1900, "test/accuracy"),
    "cartpole/train_agent": ("tasks.rl.train:train_agent", False, 700, 0, "test/return"),
}
FAILURES = (
    ("out of memory", "CUDA out of memory", "lower its batch; `overnight fit` shows what fits"),
    ("bad data", "train/<b>oak</b>/7.png: is no picture & cannot be read", "correct the file that is named"),
    ("not a number", "loss is nan at step 812", "lower its lr, or set precision: fp32"),
    ("killed by the system", "killed (signal 9)", "close other programs at night"),
    ("disk", "the disk is full: No space left on device", "free some room"),
    ("network", 'Connection refused: http://127.0.0.1:9/"x"', "look at the server's address"),
    ("bug", "KeyError: 'label'\nFile \"tasks/vision/cnn.py\", line 12", "look at the line that is named"),
)  # fmt: skip
PROGRAMS = ("ollama", "chrome", "game <3>")


@dataclass
class Truth:
    """What a reader of the page has to find."""

    outcome: str = "done"
    ran: dict[str, float] = field(default_factory=dict)  # seconds by label
    since: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    saved_s: float = 0.0  # on the card
    memory: dict[str, tuple[int, float]] = field(default_factory=dict)  # lease and peak, context included
    errors: dict[str, float] = field(default_factory=dict)
    survived: set[str] = field(default_factory=set)
    other: tuple[int, tuple[str, ...]] = (0, ())
    judged: dict[str, tuple[bool, float, float]] = field(default_factory=dict)
    energy_wh: float | None = None
    must_do: list[str] = field(default_factory=list)  # words that the lines for today have to name


@dataclass
class Made:
    name: str
    night: NightRecord
    truth: Truth


def nights(count: int = 30, seed: int = 0) -> list[Made]:
    """The oldest first; every third nothing changed, every fifth but those was killed or stopped."""
    dice = random.Random(seed)
    remembered = dict[str, StepRecord]()
    return [_night(number, dice, remembered) for number in range(count)]


def _night(number: int, dice: random.Random, remembered: dict[str, StepRecord]) -> Made:
    truth = Truth()
    started = FIRST + number * DAY_S + dice.uniform(0, 5)
    changed = set(STEPS) if number == 0 else set(dice.sample(list(STEPS), dice.randint(1, 6)))
    changed = set() if number % 3 == 2 else changed
    failing = dice.choice(sorted(changed)) if changed and number % 4 == 1 else ""
    ends_early = bool(changed) and number % 5 == 3
    steps = list[StepRecord]()
    now = started + 5
    for label in STEPS:
        if label in remembered and label not in changed:
            steps.append(_unchanged(remembered[label], truth))
            continue
        if ends_early and steps and label == max(changed):
            break
        step = _step(label, now, dice, truth, number, failing == label)
        now = step.ended or now
        steps.append(step)
        if step.state == "done":
            remembered[label] = step
    ended: dict[str, Any] = {"ended": now + 3}
    if ends_early:
        ended = _ended_early(truth, now, killed=number % 2 == 0, started=started)
    elif truth.failed:
        truth.outcome = "failed"
    return _made(number, steps, truth, dice, {"started": started, "seen": now + 3, **ended})


def _ended_early(truth: Truth, now: float, killed: bool, started: float) -> dict[str, Any]:
    truth.outcome = "killed" if killed else "stopped"
    truth.must_do.append("was killed" if killed else "was stopped")
    return {"outcome": "running"} if killed else {"outcome": "stopped", "ended": max(now, started) + 1}


def _unchanged(step: StepRecord, truth: Truth) -> StepRecord:
    truth.since[step.label] = step.run_id
    truth.saved_s += step.run_s if step.gpu else 0.0

    class Earlier:
        run_id = step.run_id
        link = step.link
        at = step.ended or 0.0
        run_s = step.run_s

    kept = {name: getattr(step, name) for name in ("label", "step", "gpu", "scores", "key")}
    return StepRecord(state="unchanged", **kept, **record.unchanged(Earlier))


def _step(
    label: str, began: float, dice: random.Random, truth: Truth, number: int, fails: bool
) -> StepRecord:
    address, gpu, usual_s, mib, score = STEPS[label]
    wait_s = dice.uniform(0, 90) if gpu else 0.0
    run_s = usual_s * dice.uniform(0.9, 1.1) * (0.4 if fails else 1.0)
    used = _usage(label, mib, wait_s, run_s, dice, truth, fails) if gpu else Usage(run_s=run_s)
    ended = began + wait_s + run_s
    failure = _failure(label, dice, truth) if fails else None
    run_id = f"{dice.getrandbits(128):032x}"
    truth.ran[label] = run_s
    value = 1 - 0.1 * dice.random() if score else 0.0
    scores = {score: value, "train/loss": float("nan")} if score and not fails else {}
    return StepRecord(
        label=label,
        step=address,
        gpu=gpu,
        state="failed" if fails else "done",
        reason=failure[1] if failure else "",
        began=began + wait_s,
        ended=ended,
        scores=record.finite(scores),
        run_id=run_id,
        link=f"http://127.0.0.1:5007/#/experiments/1/runs/{run_id}",
        key=f"{dice.getrandbits(256):064x}",
        folder=f".overnight/steps/{label.replace('/', '-')}",
        failure=failure[0] if failure else None,
        changed=("argument params", "code tasks/vision/cnn.py", "version torch", "seed")[
            : dice.randint(0, 4)
        ],
        promotion=_promotion(label, dice, truth) if score and not fails and number else None,
        forecast_s=usual_s if number > 2 else None,
        **record.memory(used),
    )


def _usage(
    label: str, mib: int, wait_s: float, run_s: float, dice: random.Random, truth: Truth, fails: bool
) -> Usage:
    runs_out = not fails and dice.random() < 0.1
    peak = mib * dice.uniform(0.9, 1.0)
    used = Usage(
        asked_mib=mib + 400,
        lease_mib=mib + 400,
        cap_mib=mib + 100,
        overhead_mib=300,
        peak_mib=peak,
        predicted_mib=float(mib),
        wait_s=wait_s,
        run_s=run_s,
        asked_micro_batch=128,
        micro_batch=64 if runs_out else 128,
        hit_limit=runs_out,
        out_of_memory=runs_out,
        finished=not fails,
    )
    truth.memory[label] = (mib + 400, peak + 300)
    if runs_out:
        truth.survived.add(label)
    else:
        truth.errors[label] = peak / mib - 1
    return used


def _failure(label: str, dice: random.Random, truth: Truth) -> tuple[Failure, str]:
    kind, message, fix = dice.choice(FAILURES)
    truth.failed[label] = (kind, fix.replace("`", ""))
    truth.must_do.append(label)
    return Failure(kind=kind, evidence=(message, "</pre><script>alert(1)</script>"), fix=fix), message


def _promotion(label: str, dice: random.Random, truth: Truth) -> dict[str, Any] | None:
    if dice.random() < 0.4:
        return None
    difference = dice.gauss(0.004, 0.006)
    half = abs(dice.gauss(0.005, 0.001))
    promoted = difference - half > 0
    truth.judged[label] = (promoted, difference - half, difference + half)
    return {
        "name": label.partition("/")[0],
        "champion": dice.randint(2, 30),
        "promotes": promoted,
        "gain": difference,
        "low": difference - half,
        "high": difference + half,
        "reason": f"{'' if promoted else 'not '}promoted, against the champion, item by item",
    }


def _made(
    number: int, steps: list[StepRecord], truth: Truth, dice: random.Random, times: dict[str, Any]
) -> Made:
    others = dice.choice((0, 0, 700, 5100))
    names = PROGRAMS[: dice.randint(1, 3)] if others else ()
    truth.energy_wh = dice.uniform(50, 2500) if number % 7 else None
    points = list(_points(steps, others, names))
    truth.other = (others, names) if points else (0, ())
    fields: dict[str, Any] = {
        "experiment": "nightly",
        "config": "configs/nightly.yaml",
        "flow": "nightly",
        "outcome": "failed" if truth.failed else "done",
        "link": "http://127.0.0.1:5007/#/experiments/1/runs/abc",
        "prefect": "http://127.0.0.1:4207/runs/flow-run/abc",
        "commit": "1ec9c5b06c3c2d0a",
        "card": CARD,
        "steps": tuple(steps),
        "timeline": record.moments(points),
        "other_programs": names if points else (),
        "energy_wh": truth.energy_wh,
        "price_per_kwh": PRICE,
    }
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(times["started"]))
    return Made(f"{stamp}-nightly-run-{number:06x}", NightRecord(**{**fields, **times}), truth)


def _points(steps: list[StepRecord], others: int, names: tuple[str, ...]) -> Any:
    """What a holder of the card writes: every 5 s, the maxima since."""
    for step in steps:
        if not (step.lease_mib and step.began and step.ended):
            continue
        at = step.began
        while at < step.ended:
            own = (step.peak_mib or 0) + step.overhead_mib
            lease = step.lease_mib
            yield Point(at, "nightly", step.label, 7, lease, lease, own, int(own) + others, others, names)
            at += 5.0
