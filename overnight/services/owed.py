"""Ends that MLflow did not take when they were told: kept on the disk, told by the supervisor when the server is back."""

import json
import time
import urllib.error
from pathlib import Path
from typing import Any

from overnight.services.catalogue import ask
from overnight.services.settings import Settings, folder


def owe(run_id: str, status: str, note: str = "") -> None:
    """An MLflow run that has ended; `note` is for people."""
    path = _file(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"status": status, "end_time": int(time.time() * 1000), "note": note}))
    part.replace(path)


def of_mlflow(run_id: str) -> dict[str, Any] | None:
    """What is owed to a run; None when nothing is."""
    try:
        said = json.loads(_file(run_id).read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and "status" in said else None


def pay(now: Settings) -> list[str]:
    """Tell what is owed, a line for each. Raises OSError when the server is still away."""
    lines = []
    for path in sorted((folder() / "owed").glob("*.json")) if now.mlflow.startswith("http") else []:
        said = of_mlflow(path.stem)
        if said:
            try:
                _tell(now, path.stem, said)
                lines.append(f"MLflow run {path.stem}: {said['status']}, told late")
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    raise
        path.unlink(missing_ok=True)
    return lines


def _tell(now: Settings, run_id: str, said: dict[str, Any]) -> None:
    api = f"{now.mlflow}/api/2.0/mlflow/runs"
    if said.get("note"):
        ask(f"{api}/set-tag", {"run_id": run_id, "key": "mlflow.note.content", "value": said["note"]})
    ask(f"{api}/update", {"run_id": run_id, "status": said["status"], "end_time": said["end_time"]})


def _file(run_id: str) -> Path:
    return folder() / "owed" / f"{Path(run_id).name}.json"
