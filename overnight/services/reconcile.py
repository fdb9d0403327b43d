"""What says Running runs: runs whose process is gone are closed in Prefect and in MLflow, with what is known of their end.

Which process runs a run stands in Prefect's labels, MLflow's tags and a locked file; a run is closed when this checkout on this machine
started it and its process is gone. Runs of other checkouts, machines and programs are never touched. Only what is said to be open is
read: both servers filter by state, so that thousands of finished runs cost nothing.
"""

import json
import time
import urllib.error
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from overnight import locks
from overnight.processes import Identity
from overnight.services import flow_processes
from overnight.services.definitions import ask, ask_prefect, get
from overnight.services.orphans import flow_runs_of_processes
from overnight.services.settings import POOL, Settings, environment, users_folder
from overnight.tracking import backlog
from overnight.tracking.backlog import BacklogWorker
from overnight.tracking.client import NOTE_TAG, append_note

Json = dict[str, Any]
OPEN = ("RUNNING", "PENDING", "CANCELLING")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
JUST_NOW_S = 10  # a run without a name that has just begun may be about to say whose it is
PENDING_S = 60  # a worker starts the process of a run at once
PAGE = 200
MOST = 1000  # open runs in MLflow; more are found when these are closed
WHY = "its process is gone: killed, or the machine went down"
CREATED = {"config", "overrides"}  # the parameters of every flow of ours


class Keeper:
    """Closes what is dead; remembers when it saw what alive."""

    def __init__(self, now: Settings) -> None:
        self.settings = now
        self.seen: dict[Identity, float] = {}
        self.closed: dict[str, str] = {}  # flow runs that were closed, and why
        self.lingering = set[str]()
        self.backlog_worker = BacklogWorker(environment)

    def look(self, worker_since: float) -> list[str]:
        """Ship what the dead have left, then close what is dead, MLflow first: the folders that it names tell when. A line for each thing done.

        A server that is away is asked next time. worker_since: when the worker that lives now was started.
        """
        lines: list[str] = []
        mlflow: list[Callable[[], list[str]]] = [self.backlog_worker.poll, self._mlflow]
        prefect: list[Callable[[], list[str]]] = [partial(self._prefect, worker_since), self._task_runs]
        for parts in (mlflow, prefect):
            try:
                for part in parts:
                    lines += part()
            except (OSError, ValueError, KeyError):
                continue
        return lines

    def _gone(self, identity: Identity | None, flow_run_id: str, step: str = "") -> str:
        """Why a run of ours is dead, empty when it is not, or not ours."""
        if identity is None or not identity.ours():
            return ""
        if (
            identity.alive() or flow_run_id in flow_processes.held()
        ):  # a container of its own has other pids, and the same locks
            self.seen[identity] = time.time()
            return ""
        last = max(
            self.seen.get(identity, 0.0),
            flow_processes.last_seen(flow_run_id),
            flow_processes.last_written(Path(step)) if step else 0.0,
        )
        self.seen[identity] = last
        return flow_processes.orphaned(flow_run_id) or identity.death_reason(last)

    # -------------------------------------------------------------------------------------------- MLflow

    def _mlflow(self) -> list[str]:
        if not self.settings.mlflow.startswith("http"):
            return []
        lines = []
        for run in self._open_in_mlflow():  # steps first: their folders tell when
            tags = _tags(run)
            identity, step = Identity.from_tags(tags), tags.get("overnight.folder", "")
            why = self._gone(identity, tags.get("prefect.flow_run_id", ""), step)
            waits = (
                step and backlog.is_pending(Path(step)) and not self.backlog_worker.failures
            )  # first what it has left, and with it perhaps its end
            if why and identity and not waits and self._kill(run["info"]["run_id"], why, identity):
                lines.append(
                    f"MLflow run {run['info'].get('run_name', '')} ({run['info']['run_id']}): closed, since {why}"
                )
        return lines

    def _open_in_mlflow(self) -> list[Json]:
        """The runs of this checkout that are said to run."""
        api = f"{self.settings.mlflow}/api/2.0/mlflow"
        experiments = [
            e["experiment_id"]
            for e in ask(f"{api}/experiments/search", {"max_results": 1000}).get("experiments", [])
        ]
        mine = Identity.mine()
        tags = [f"tags.`overnight.{name}` = {json.dumps(getattr(mine, name))}" for name in ("host", "state")]
        # On a server of our own, those tags would cost six times what the state costs, and leave nothing out.
        wanted = " and ".join(["attributes.status = 'RUNNING'", *([] if self.settings.own_mlflow else tags)])
        found = ask(
            f"{api}/runs/search", {"experiment_ids": experiments, "filter": wanted, "max_results": MOST}
        )
        return sorted(found.get("runs", []), key=lambda run: "overnight.folder" not in _tags(run))

    def _kill(self, run_id: str, why: str, identity: Identity) -> bool:
        """It ended when it was last seen, as far as anybody knows, not when it was found. Not one that somebody else has just gone on with."""
        api = f"{self.settings.mlflow}/api/2.0/mlflow/runs"
        tags = _tags(get(f"{api}/get?run_id={run_id}")["run"])
        if Identity.from_tags(tags) != identity:
            return False
        note = append_note(tags.get(NOTE_TAG, ""), why)
        ask(f"{api}/set-tag", {"run_id": run_id, "key": NOTE_TAG, "value": note})
        ask(
            f"{api}/update",
            {
                "run_id": run_id,
                "status": "KILLED",
                "end_time": int((self.seen[identity] or time.time()) * 1000),
            },
        )
        return True

    # -------------------------------------------------------------------------------------------- Prefect

    def _prefect(self, worker_since: float) -> list[str]:
        lines, unnamed = [], []
        alive = set(flow_processes.held())
        for run in self._open("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": OPEN}}}}):
            if run["id"] in alive:
                continue
            identity = Identity.from_tags(run.get("labels") or {})
            if identity is None:
                unnamed.append(run)
            elif why := self._gone(identity, run["id"]):
                lines += self._crash(run, why)
        for run in unnamed:
            if self._nobodys(run, worker_since):
                lines += self._crash(run, flow_processes.orphaned(run["id"]) or WHY)
        return lines + self._unsaid()

    def _open(self, path: str, wanted: Json) -> list[Json]:
        found: list[Json] = []
        while True:
            page = ask_prefect(self.settings, path, {**wanted, "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def _nobodys(self, run: Json, worker_since: float) -> bool:
        """Whether a run that never said whose it is has nobody: it left a file, or it is of our own server and no process can be it."""
        if run["id"] in flow_processes.left():
            return time.time() - flow_processes.last_seen(run["id"]) > JUST_NOW_S
        since = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        if not self.settings.own_prefect or time.time() - since < JUST_NOW_S:
            return False
        if run.get("deployment_id"):
            begun = since < worker_since or time.time() - since > PENDING_S
            return begun and run.get("work_pool_name") == POOL and run["id"] not in flow_runs_of_processes()
        busy = {holder.pid for holder in flow_processes.held().values()}
        candidates = [u for u in locks.users(users_folder()) if u.since <= since + 1 and u.pid not in busy]
        return (run.get("parameters") or {}).keys() >= CREATED and not candidates

    def _crash(self, run: Json, why: str) -> list[str]:
        """As it meant to end if it said so, else Crashed; one that was being cancelled is cancelled. Its task runs with it."""
        end = None if flow_processes.orphaned(run["id"]) else flow_processes.end_of(run["id"])
        kind = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
        state = (
            {"type": end.type, "name": end.name, "message": end.message}
            if end
            else {"type": kind, "message": why}
        )
        ask_prefect(self.settings, f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
        self.closed[run["id"]] = why
        flow_processes.forget(run["id"])
        return [f"flow run {run['name']} ({run['id']}): closed as {state['type']}, since {why}"]

    def _unsaid(self) -> list[str]:
        """Runs that left files and have ended: a state that could not be told, or that somebody else told wrongly, is put right."""
        lines = []
        for flow_run_id in flow_processes.left():
            if time.time() - flow_processes.last_seen(flow_run_id) < JUST_NOW_S:
                continue
            run = self._read(flow_run_id)
            if run is None or self._named_and_alive(run):
                flow_processes.forget(flow_run_id) if run is None else None
                continue
            why, end = flow_processes.orphaned(flow_run_id), flow_processes.end_of(flow_run_id)
            if (
                run["state_type"] in OPEN
                or (why and run["state_type"] != "COMPLETED")
                or (end and run["state_type"] == "CRASHED")
            ):
                lines += self._crash(run, why or WHY)
            flow_processes.forget(flow_run_id)
        return lines

    def _read(self, flow_run_id: str) -> Json | None:
        try:
            found: Json = get(f"{self.settings.prefect}/flow_runs/{flow_run_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:  # somebody deleted it
                return None
            raise
        return found

    def _named_and_alive(self, run: Json) -> bool:
        identity = Identity.from_tags(run.get("labels") or {})
        return identity is not None and identity.alive() and run["state_type"] in OPEN

    def _task_runs(self) -> list[str]:
        """Steps that are said to run in flow runs that have ended; unless just closed, seen twice: their last words may be on the way."""
        wanted: Json = {
            "task_runs": {"state": {"type": {"any_": OPEN}}},
            "flow_runs": {"state": {"type": {"any_": FINAL}}},
        }
        if not self.settings.own_prefect:
            wanted["flow_runs"]["id"] = {"any_": list(self.closed)}
        found = self._open("/task_runs/filter", wanted)
        ready = [t for t in found if t["id"] in self.lingering or t["flow_run_id"] in self.closed]
        ours = self._ours({t["flow_run_id"] for t in ready} - self.closed.keys()) | self.closed.keys()
        lines = []
        for task in [t for t in ready if t["flow_run_id"] in ours]:
            why = self.closed.get(task["flow_run_id"], "its flow run has ended without it")
            begun = {"type": "CRASHED", "message": why}
            state = (
                {"type": "CANCELLED", "name": "NotRun", "message": f"not run: {why}"}
                if task["state_type"] == "PENDING"
                else begun
            )
            ask_prefect(self.settings, f"/task_runs/{task['id']}/set_state", {"state": state, "force": True})
            lines.append(f"task run {task['name']} ({task['id']}): closed, since {why}")
        self.lingering = {task["id"] for task in found}
        return lines

    def _ours(self, flow_run_ids: set[str]) -> set[str]:
        """Those whose labels say that this checkout started them."""
        wanted = {"flow_runs": {"id": {"any_": sorted(flow_run_ids)}}}
        found = self._open("/flow_runs/filter", wanted) if flow_run_ids else []
        return {
            r["id"]
            for r in found
            if (identity := Identity.from_tags(r.get("labels") or {})) and identity.ours()
        }


def _tags(run: Json) -> dict[str, str]:
    return {t["key"]: t["value"] for t in run["data"].get("tags", [])}
