"""Trainings whose child or parent is killed with signal 9 at a random moment, and started again.

Afterwards every point in the spools must be in MLflow exactly once, and no other.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench._attempt import attempt
from bench._baselines import images
from bench._overhead import PARAMS
from bench._rows import OUT, Row, bar, kept
from bench._server import serving
from overnight import events as event_log
from overnight import locks
from overnight.artifact import Artifact
from overnight.files import tree_sha256
from overnight.paths import steps
from overnight.tracking import backlog, uploader
from overnight.tracking.client import Tracker, allowed
from overnight.training.resume import MONITOR, checkpoints_of
from tasks.vision.cnn import CnnParams

ROOT = Path(__file__).resolve().parent.parent
Point = tuple[str, int, str]  # name, step, value: as text, since nan is not itself


@dataclass
class Whole:
    """The results of a training that is not disturbed."""

    weights: str
    points: set[tuple[str, int]]
    losses: list[Point]
    trained_s: float


def case_of(name: str, images: Artifact, params: CnnParams, uri: str) -> Row:
    return {
        "key": name,
        "uri": uri,
        "arguments": [params.model_dump(mode="json"), images.model_dump(mode="json")],
    }


def events(folder: Path) -> list[Row]:
    """The whole lines of a child's spool."""
    found, start = list[Row](), 0
    while (portion := event_log.read(folder / event_log.CHILD, start)).end > start:
        found, start = found + portion.events, portion.end
    return found


def logged(folders: list[Path]) -> list[Point]:
    """Every point of the spools."""
    every = [e for folder in folders for e in events(folder) if e["event"] == "metrics"]
    return [
        (name, e["step"], repr(float(value))) for e in every for name, value in allowed(e["values"]).items()
    ]


def shipped(tracker: Tracker, run_id: str) -> list[Point]:
    """Every point that MLflow has of a run."""
    names = tracker.client.get_run(run_id).data.metrics
    return [
        (name, m.step, repr(float(m.value)))
        for name in names
        for m in tracker.client.get_metric_history(run_id, name)
    ]


def science(points: list[Point]) -> list[Point]:
    """But for what is measured, which no two runs have in common."""
    return [p for p in points if not p[0].startswith(MONITOR)]


def losses(points: list[Point]) -> list[Point]:
    return sorted((p for p in points if p[0] == "train/loss"), key=lambda p: p[1])


def folders_of(key: str) -> list[Path]:
    return sorted(
        (f for f in steps().glob(f"*-{key}-*") if (f / "spec.json").is_file()),
        key=lambda f: (f / "spec.json").stat().st_mtime,
    )


def undisturbed(case: Row, tracker: Tracker) -> Whole:
    code, folder = attempt(case, tracker)
    if code:
        raise SystemExit((folder / "log.txt").read_text())
    found, points = [e for e in events(folder) if e["event"] == "progress"], science(logged([folder]))
    trained_s = found[-1]["at"] - found[0]["at"]
    return Whole(tree_sha256(folder / "out" / "model"), {p[:2] for p in points}, losses(points), trained_s)


def first_loss(key: str, over: Any) -> None:
    """Wait until the training has begun to log."""
    while not over() and not any(losses(logged([folder])) for folder in folders_of(key)):
        time.sleep(0.02)


def killed(case: Row, whole: str, after_s: float, tracker: Tracker, place: Path) -> bool:
    """Whether the signal came before the end. whole: which process is meant."""
    if whole == "child":
        work = threading.Thread(target=attempt, args=(case, tracker))
        work.start()
        first_loss(case["key"], lambda: not work.is_alive())
        time.sleep(after_s)
        child = next((p for p in psutil.Process().children() if case["key"] in " ".join(p.cmdline())), None)
        if child:
            child.send_signal(signal.SIGKILL)
        work.join()
        return not (folders_of(case["key"])[-1] / "result.json").exists()
    file = place / f"{case['key']}.json"
    file.write_text(json.dumps(case))
    parent = subprocess.Popen(
        [sys.executable, "-m", "bench._attempt", str(file)], cwd=ROOT, env={**os.environ}
    )
    first_loss(case["key"], lambda: parent.poll() is not None)
    time.sleep(after_s)
    parent.send_signal(signal.SIGKILL)
    code = parent.wait()
    while locks.holder(checkpoints_of(case["key"]) / "lock"):  # its child ends with it
        time.sleep(0.02)
    return code == -signal.SIGKILL and not (folders_of(case["key"])[-1] / "result.json").exists()


def kill_and_resume(case: Row, who: str, whole: Whole, after_s: float, tracker: Tracker, place: Path) -> Row:
    """One kill, `after_s` seconds after the first optimizer step, or earlier if training ends before."""
    name, tries = case["key"], 0
    while not killed(case := {**case, "key": f"{name}-{tries}"}, who, after_s / 2**tries, tracker, place):
        tries += 1
    at_death = logged(folders_of(case["key"]))
    run_id = tracker.find("overnight.key", case["key"])
    uploaded = Counter(shipped(tracker, run_id)) if run_id else Counter()
    code, folder = attempt(case, tracker)
    return {
        "killed": who,
        "after_s": round(after_s / 2**tries, 2),
        "code": code,
        "points_at_death": len(at_death),
        "of_these_uploaded": sum(uploaded.values()),
        **resumed(folders_of(case["key"])),
        **compared(case, folder, whole, tracker),
    }


def resumed(folders: list[Path]) -> Row:
    """Where it went on, and how much training had to be done again."""
    before, again = events(folders[0]), events(folders[-1])
    notes = [
        e["text"]
        for e in again
        if e["event"] == "note" and e["text"].startswith("goes on after optimizer step")
    ]
    step = int(notes[0].split()[5]) if notes else 0
    trained = [e for e in before if e["event"] == "metrics" and "train/loss" in e["values"]]
    kept = [e["at"] for e in trained if e["step"] <= step]
    lost_s = max(e["at"] for e in before) - (kept[-1] if kept else trained[0]["at"])
    return {"at_step": trained[-1]["step"], "resumed_at": step, "lost_s": round(lost_s, 2)}


def compared(case: Row, folder: Path, whole: Whole, tracker: Tracker) -> Row:
    """What MLflow has of the run against what the spools hold and what an undisturbed training logs."""
    runs = tracker.client.search_runs(
        [tracker.experiment_id], f"tags.`mlflow.overnight.key` = '{case['key']}'"
    )
    mlflow, spools = (
        Counter(points) for points in (shipped(tracker, runs[0].info.run_id), logged(folders_of(case["key"])))
    )
    steps_of = Counter(p[:2] for p in mlflow.elements())
    weights = folder / "out" / "model"
    return {
        "runs": len(runs),
        "status": runs[0].info.status,
        "points": mlflow.total(),
        "lost": (spools - mlflow).total(),
        "added": (mlflow - spools).total(),
        "doubled": sum(n - 1 for n in steps_of.values()),
        "missing": sorted(whole.points - steps_of.keys()),
        "weights_equal": weights.exists() and tree_sha256(weights) == whole.weights,
        "losses_equal": losses(list(mlflow.elements())) == whole.losses,
    }


def kills(options: argparse.Namespace) -> bool:
    """Kill children and parents in turn, run the same command again, and compare what MLflow has."""
    place = OUT / "kills"
    digits = images("digits")  # read before the root is another one, which has no data sets
    shutil.rmtree(place, ignore_errors=True)
    os.environ["OVERNIGHT_ROOT"] = str(place)
    params = PARAMS["digits"].model_copy(
        update={"channels": 12, "blocks": 1, "epochs": 10, "checkpoint_s": options.checkpoint_s}
    )
    with serving(place) as (uri, _):
        tracker = Tracker(uri, "bench")
        whole = undisturbed(case_of("reference", digits, params, uri), tracker)
        print(
            f"undisturbed: {whole.trained_s:.1f} s of training, {len(whole.points)} points logged", flush=True
        )

        def row(number: int) -> Row:
            after = random.Random(number).uniform(0, whole.trained_s)
            case = case_of(f"kill{number}", digits, params, uri)
            return kill_and_resume(case, ("child", "parent")[number % 2], whole, after, tracker, place)

        good = judged_kills(
            kept(
                "training-kills", range(options.kills), options.fresh, row, checkpoint_s=options.checkpoint_s
            )
        )
        return the_rest() and good


def the_rest() -> bool:
    """Upload the spools of parents that were killed after their training, as the supervisor would."""
    left = backlog.pending()
    code = uploader.main() if left else 0
    return bar(
        "spools without a next attempt, uploaded by overnight.tracking.uploader",
        f"{len(left) - len(backlog.pending())} of {len(left)}",
        "all",
        code == 0,
    )


def judged_kills(rows: list[Row]) -> bool:
    """The table of the kills."""
    by = {who: sum(row["killed"] == who for row in rows) for who in ("child", "parent")}
    done = sum(row["code"] == 0 and row["status"] == "FINISHED" and row["runs"] == 1 for row in rows)
    good = bar(
        f"finished in the same MLflow run, of {by}", f"{done} of {len(rows)}", "all", done == len(rows)
    )
    equal = sum(row["weights_equal"] and row["losses_equal"] for row in rows)
    good &= bar("bit-equal weights and losses", f"{equal} of {len(rows)}", "all", equal == len(rows))
    continued = sum(row["resumed_at"] > 0 for row in rows)
    print(f"| went on from a checkpoint (the others: before the first) | {continued} of {len(rows)} | | |")
    missing = sum(row["points_at_death"] - row["of_these_uploaded"] for row in rows)
    points = sum(row["points_at_death"] for row in rows)
    print(f"| points that MLflow did not have yet at the kills | {missing} of {points} | | |")
    faults = {name: sum(row[name] for row in rows) for name in ("lost", "added", "doubled")}
    faults["missing"] = sum(len(row["missing"]) for row in rows)
    what = f"points at fault, of {sum(row['points'] for row in rows)} read back from MLflow"
    good &= bar(
        what, ", ".join(f"{count} {name}" for name, count in faults.items()), "0", not any(faults.values())
    )
    lost = max(row["lost_s"] for row in rows)
    return bar("training lost", f"{lost:.1f} s at most", "<= 60 s", lost <= 60) and good
