"""What says Running runs: runs whose process is gone are closed, in Prefect and in MLflow.

Each flow process holds a lock that is named after its Prefect run. A lock file that nobody holds is a run that could not say goodbye:
it was killed, or the machine went down. Only runs that left such a file are touched, so none of another checkout or machine ever is.
"""

import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overnight import descendants, locks
from overnight.services.catalogue import ask, ask_prefect, get
from overnight.services.settings import Settings, folder

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
JUST_NOW_S = 10  # a run that has just ended by an error may still be telling Prefect
WHY = "its process is gone: killed, or the machine went down"


@contextmanager
def running(flow_run_id: str) -> Iterator[None]:
    """This process runs it, until the block ends."""
    path = runs_folder() / f"{flow_run_id}.lock"
    with locks.hold(path, f"flow run {flow_run_id}"):
        yield
        path.unlink(missing_ok=True)  # not when the block was left by an error: closing asks how it ended


def runs_folder() -> Path:
    """One file for each run that has not said goodbye."""
    return folder() / "runs"


def close_dead(now: Settings) -> list[str]:
    """Close the runs whose process is gone; the ids of those that were closed. A server that is away is asked next time."""
    descendants.end(lambda owner: not owner.alive())  # a killed run takes its steps along, and nobody took what those had started
    closed = []
    for path in sorted(runs_folder().glob("*.lock")):
        if locks.holder(path) is not None or time.time() - path.stat().st_mtime < JUST_NOW_S:
            continue
        try:
            closed += [path.stem] if _close(now, path.stem) else []
        except (OSError, ValueError, KeyError):
            continue
        path.unlink(missing_ok=True)
    return closed


def _close(now: Settings, flow_run_id: str) -> bool:
    """Whether anything was still said to run."""
    runs = _open_in_mlflow(now, flow_run_id)
    for run_id in runs:
        ask(f"{now.mlflow}/api/2.0/mlflow/runs/set-tag", {"run_id": run_id, "key": "mlflow.note.content", "value": WHY})
        ask(f"{now.mlflow}/api/2.0/mlflow/runs/update", {"run_id": run_id, "status": "KILLED", "end_time": int(time.time() * 1000)})
    return _close_in_prefect(now, flow_run_id) or bool(runs)


def _close_in_prefect(now: Settings, flow_run_id: str) -> bool:
    try:
        said: dict[str, Any] = get(f"{now.prefect}/flow_runs/{flow_run_id}")
    except urllib.error.HTTPError as error:
        if error.code == 404:  # somebody deleted it
            return False
        raise
    if said["state_type"] in FINAL:
        return False
    kind = "CANCELLED" if said["state_type"] == "CANCELLING" else "CRASHED"
    ask_prefect(now, f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": kind, "message": WHY}, "force": True})
    return True


def _open_in_mlflow(now: Settings, flow_run_id: str) -> list[str]:
    """The MLflow runs of a Prefect run that are said to run."""
    if not now.mlflow.startswith("http"):
        return []
    api = f"{now.mlflow}/api/2.0/mlflow"
    experiments = [e["experiment_id"] for e in ask(f"{api}/experiments/search", {"max_results": 1000}).get("experiments", [])]
    wanted = f"tags.`prefect.flow_run_id` = {json.dumps(flow_run_id)} and attributes.status = 'RUNNING'"
    found = ask(f"{api}/runs/search", {"experiment_ids": experiments, "filter": wanted, "max_results": 1000})
    return [r["info"]["run_id"] for r in found.get("runs", [])]
