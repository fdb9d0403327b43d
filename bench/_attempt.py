"""One attempt at a training as a run makes it, but for Prefect: MLflow run, child, shipping, end. `python -m bench._attempt CASE.json`."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from overnight.best_effort import best_effort
from overnight.gpu.card import Card
from overnight.orchestration.launcher import Stop, new_folder, run_child
from overnight.orchestration.pipeline import SHIP_S
from overnight.orchestration.protocol import ChildSpec
from overnight.tracking.client import Tracker
from overnight.tracking.record import Record
from overnight.tracking.uploader import FOLDER, Shipper
from overnight.training.resume import previous_attempts

CARD = Card(uuid="virtual", name="virtual", total_mib=1024, budget_mib=1024)


def attempt(case: dict[str, Any], tracker: Tracker) -> tuple[int, Path]:
    """The step's exit code, and its folder."""
    folder, before = new_folder(case["key"]), previous_attempts(case["key"])
    tags = {FOLDER: str(folder), "overnight.key": case["key"], "overnight.attempts": str(len(before) + 1)}
    record = Record(uri=tracker.uri, experiment="bench", label=case["key"], tags=tags, earlier=before)
    shipper, done = Shipper(tracker, folder, record), threading.Event()
    shipper.ready(lambda: False, 60)

    def ship() -> None:
        while not done.wait(SHIP_S):
            with best_effort():
                shipper.go_on()

    threading.Thread(target=ship, daemon=True).start()
    result = run_child(folder, spec_of(case, shipper), 1, Stop(), lambda _event: None, lambda _line: None)
    done.set()
    told = shipper.finish("FAILED" if result.code else "FINISHED", lambda: False) or shipper.conclude(
        300
    )  # as the supervisor would, later
    return (result.code if told else 99), folder


def spec_of(case: dict[str, Any], shipper: Shipper) -> ChildSpec:
    return ChildSpec(
        step="tasks.vision.cnn:train_cnn",
        label=case["key"],
        experiment="bench",
        arguments=case["arguments"],
        seed=7,
        key=case["key"],
        parent=os.getpid(),
        card=CARD,
        ask_mib=0,
        earlier=shipper.record.earlier,
        logged_before=shipper.said.steps,
    )


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(min(255, abs(attempt(given, Tracker(given["uri"], "bench"))[0])))
