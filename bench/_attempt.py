"""`python -m bench._attempt CASE.json`: one attempt at a training: MLflow run, child, uploads, no Prefect."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from overnight.best_effort import best_effort
from overnight.gpu.card import Card
from overnight.memory.request import MemoryRequest
from overnight.orchestration.launcher import Stop, new_folder, run_child
from overnight.orchestration.pipeline import POLL_S
from overnight.orchestration.protocol import ChildSpec
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import FOLDER, Uploader
from overnight.training.resume import previous_attempts

CARD = Card(uuid="virtual", name="virtual", total_mib=1024, budget_mib=1024)


def attempt(case: dict[str, Any], tracker: Tracker) -> tuple[int, Path]:
    """The step's exit code, and its folder."""
    folder, before = new_folder(case["key"]), previous_attempts(case["key"])
    tags = {FOLDER: str(folder), "overnight.key": case["key"], "overnight.attempts": str(len(before) + 1)}
    record = Record(uri=tracker.uri, experiment="bench", label=case["key"], tags=tags, earlier=before)
    uploader, done = Uploader(tracker, folder, record), threading.Event()
    uploader.wait_until_open(lambda: False, 60)

    def ship() -> None:
        while not done.wait(POLL_S):
            with best_effort():
                uploader.upload()

    threading.Thread(target=ship, daemon=True).start()
    result = run_child(folder, spec_of(case, uploader), 1, Stop(), lambda _event: None, lambda _line: None)
    done.set()
    finished = uploader.finish("FAILED" if result.code else "FINISHED", lambda: False)
    uploaded = finished or uploader.upload_all(300)  # as the supervisor would, later
    return (result.code if uploaded else 99), folder


def spec_of(case: dict[str, Any], uploader: Uploader) -> ChildSpec:
    return ChildSpec(
        step="tasks.vision.cnn:train_cnn",
        label=case["key"],
        experiment="bench",
        arguments=case["arguments"],
        seed=7,
        key=case["key"],
        parent=os.getpid(),
        card=CARD,
        request=MemoryRequest(0),
        earlier=uploader.record.earlier,
        logged_before=uploader.run_state.steps,
    )


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(min(255, abs(attempt(given, Tracker(given["uri"], "bench"))[0])))
