"""Closes runs in Prefect and MLflow whose process is gone; ends processes that outlived their worker or run.

Which process runs a run stands in Prefect's labels, MLflow's tags and a locked file. A run is closed when
this checkout on this machine started it and its process is gone; runs of other checkouts, machines and
programs are never touched. Only open runs are queried: both servers filter by state, so thousands of finished
runs cost nothing.
"""

import json
import signal
import time
import urllib.error
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from overnight import locks
from overnight.processes import Identity, Process, kill_step_processes
from overnight.services import flow_processes
from overnight.services.definitions import ask, ask_prefect, get
from overnight.services.settings import POOL, Settings, environment, users_folder
from overnight.tracking import backlog
from overnight.tracking.backlog import BacklogWorker
from overnight.tracking.client import NOTE_TAG, append_note

Json = dict[str, Any]
OPEN = ("RUNNING", "PENDING", "CANCELLING")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
JUST_NOW_S = 10  # an unlabelled run that has just begun may be about to get its labels
PENDING_S = 60  # a worker starts the process of a run at once
PAGE = 200
MAX_OPEN = 1000  # open runs in MLflow at a time; more are found when these are closed
WHY = "its process is gone: killed, or the machine went down"
PARAMETERS = {"config", "overrides"}  # of every flow of this program
ORPHAN_GRACE_S = 28.0  # a checkpoint may take 20 s


class Orphans:
    """Ends flow processes whose worker was killed, and what killed steps started: TERM first, then KILL."""

    def __init__(self) -> None:
        self.asked: dict[Process, float] = {}  # when TERM was sent
        self.kept = set[Process]()  # runs of a worker that the supervisor stopped and replaced: they continue

    def end(self) -> list[str]:
        """Check all processes once; a line for each thing done."""
        killed = kill_step_processes(lambda owner: not owner.alive())
        lines = [f"ended what a killed run has left: pids {', '.join(map(str, killed))}"] if killed else []
        for flow_run_id, process in flow_processes.started_by_workers().items():
            worker = flow_processes.parent(flow_run_id)
            if worker is None or worker.alive() or process in self.kept:
                continue
            if process not in self.asked:
                lines.append(self._ask(flow_run_id, process, worker))
            elif time.monotonic() - self.asked[process] > ORPHAN_GRACE_S:
                process.signal(signal.SIGKILL)
        self.asked = {process: since for process, since in self.asked.items() if process.alive()}
        return lines

    def _ask(self, flow_run_id: str, process: Process, worker: Process) -> str:
        why = (
            f"its worker (pid {worker.pid}) is gone: killed, or broken down; "
            f"its own process (pid {process.pid}) was then asked to end"
        )
        flow_processes.mark_orphan(flow_run_id, why)
        self.asked[process] = time.monotonic()
        process.signal(signal.SIGTERM)
        return f"flow run {flow_run_id}: {why}"

    def keep_runs_of(self, worker: Process) -> None:
        """Let the runs of a worker continue that is stopped because it hangs."""
        started = flow_processes.started_by_workers().items()
        self.kept |= {p for flow_run_id, p in started if flow_processes.parent(flow_run_id) == worker}


class Reconciler:
    """Closes the runs of killed processes, and remembers when it last saw each process alive."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seen: dict[Identity, float] = {}
        self.closed: dict[str, str] = {}  # flow runs that were closed, and why
        self.open_task_runs = set[str]()  # of ended flow runs, at the last check
        self.backlog_worker = BacklogWorker(environment)

    def reconcile(self, worker_since: float) -> list[str]:
        """Upload what killed runs left, then close them, MLflow first, since its folders tell when.

        Returns a line for each thing done. A server that does not answer is asked next time. worker_since:
        unix time at which the present worker was started.
        """
        lines: list[str] = []
        mlflow: list[Callable[[], list[str]]] = [self.backlog_worker.poll, self._close_mlflow_runs]
        prefect: list[Callable[[], list[str]]] = [
            partial(self._close_flow_runs, worker_since),
            self._close_task_runs,
        ]
        for parts in (mlflow, prefect):
            try:
                for part in parts:
                    lines += part()
            except (OSError, ValueError, KeyError):
                continue
        return lines

    def _death_reason(self, identity: Identity | None, flow_run_id: str, step: str = "") -> str:
        """Why a run of this checkout is dead; empty when it is not, or belongs to another checkout."""
        if identity is None or not identity.ours():
            return ""
        # A process in another container has other pids, but the same locks.
        if identity.alive() or flow_run_id in flow_processes.held():
            self.seen[identity] = time.time()
            return ""
        written = flow_processes.last_written(Path(step)) if step else 0.0
        last = max(self.seen.get(identity, 0.0), flow_processes.last_seen(flow_run_id), written)
        self.seen[identity] = last
        return flow_processes.orphan_reason(flow_run_id) or identity.death_reason(last)

    # -------------------------------------------------------------------------------------------- MLflow

    def _close_mlflow_runs(self) -> list[str]:
        if not self.settings.mlflow.startswith("http"):
            return []
        lines = []
        for run in self._open_mlflow_runs():  # steps first: their folders tell when
            tags = _tags(run)
            identity = Identity.from_tags(tags)
            step = tags.get("overnight.folder", "")
            why = self._death_reason(identity, tags.get("prefect.flow_run_id", ""), step)
            # Its events, perhaps with its end, are uploaded first.
            waits = step and backlog.is_pending(Path(step)) and not self.backlog_worker.failures
            run_id = run["info"]["run_id"]
            if why and identity and not waits and self._close_mlflow_run(run_id, why, identity):
                lines.append(f"MLflow run {run['info'].get('run_name', '')} ({run_id}): closed, since {why}")
        return lines

    def _open_mlflow_runs(self) -> list[Json]:
        """The runs of this checkout that MLflow shows as running, those of steps first."""
        api = f"{self.settings.mlflow}/api/2.0/mlflow"
        answer = ask(f"{api}/experiments/search", {"max_results": 1000})
        experiments = [experiment["experiment_id"] for experiment in answer.get("experiments", [])]
        wanted = ["attributes.status = 'RUNNING'"]
        if (
            not self.settings.own_mlflow
        ):  # on our own server, these tags cost six times as much and exclude nothing
            mine = Identity.mine()
            wanted += [
                f"tags.`overnight.{name}` = {json.dumps(getattr(mine, name))}" for name in ("host", "state")
            ]
        query = {"experiment_ids": experiments, "filter": " and ".join(wanted), "max_results": MAX_OPEN}
        found = ask(f"{api}/runs/search", query)
        return sorted(found.get("runs", []), key=lambda run: "overnight.folder" not in _tags(run))

    def _close_mlflow_run(self, run_id: str, why: str, identity: Identity) -> bool:
        """Mark a run as killed when it was last seen; False when another process has just continued it."""
        api = f"{self.settings.mlflow}/api/2.0/mlflow/runs"
        tags = _tags(get(f"{api}/get?run_id={run_id}")["run"])
        if Identity.from_tags(tags) != identity:
            return False
        note = append_note(tags.get(NOTE_TAG, ""), why)
        ask(f"{api}/set-tag", {"run_id": run_id, "key": NOTE_TAG, "value": note})
        end_ms = int((self.seen[identity] or time.time()) * 1000)
        ask(f"{api}/update", {"run_id": run_id, "status": "KILLED", "end_time": end_ms})
        return True

    # -------------------------------------------------------------------------------------------- Prefect

    def _close_flow_runs(self, worker_since: float) -> list[str]:
        lines = []
        unlabelled = []
        alive = set(flow_processes.held())
        for run in self._pages("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": OPEN}}}}):
            if run["id"] in alive:
                continue
            identity = Identity.from_tags(run.get("labels") or {})
            if identity is None:
                unlabelled.append(run)
            elif why := self._death_reason(identity, run["id"]):
                lines += self._close_flow_run(run, why)
        for run in unlabelled:
            if self._has_no_process(run, worker_since):
                lines += self._close_flow_run(run, flow_processes.orphan_reason(run["id"]) or WHY)
        return lines + self._correct_abandoned()

    def _pages(self, path: str, wanted: Json) -> list[Json]:
        found: list[Json] = []
        while True:
            page = ask_prefect(self.settings, path, {**wanted, "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def _has_no_process(self, run: Json, worker_since: float) -> bool:
        """Whether an open run without labels is dead: it left a file, or no process can be it."""
        if run["id"] in flow_processes.abandoned():
            return time.time() - flow_processes.last_seen(run["id"]) > JUST_NOW_S
        since = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        if not self.settings.own_prefect or time.time() - since < JUST_NOW_S:
            return False
        if run.get("deployment_id"):
            begun = since < worker_since or time.time() - since > PENDING_S
            in_pool = run.get("work_pool_name") == POOL
            return begun and in_pool and run["id"] not in flow_processes.flow_runs_of_processes()
        busy = {holder.pid for holder in flow_processes.held().values()}
        users = locks.users(users_folder())
        candidates = [user for user in users if user.since <= since + 1 and user.pid not in busy]
        return (run.get("parameters") or {}).keys() >= PARAMETERS and not candidates

    def _close_flow_run(self, run: Json, why: str) -> list[str]:
        """Set the state that it was about to report, else Crashed, or Cancelled if it was being cancelled."""
        end = None if flow_processes.orphan_reason(run["id"]) else flow_processes.end_of(run["id"])
        if end:
            state = {"type": end.type, "name": end.name, "message": end.message}
        else:
            kind = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
            state = {"type": kind, "message": why}
        self._set_state("flow_runs", run["id"], state)
        self.closed[run["id"]] = why
        flow_processes.forget(run["id"])
        return [f"flow run {run['name']} ({run['id']}): closed as {state['type']}, since {why}"]

    def _set_state(self, kind: str, run_id: str, state: Json) -> None:
        ask_prefect(self.settings, f"/{kind}/{run_id}/set_state", {"state": state, "force": True})

    def _correct_abandoned(self) -> list[str]:
        """Correct the state of runs that left files, where it was not reported or reported wrongly."""
        lines = []
        for flow_run_id in flow_processes.abandoned():
            if time.time() - flow_processes.last_seen(flow_run_id) < JUST_NOW_S:
                continue
            run = self._flow_run(flow_run_id)
            if run is not None and _is_alive(run):
                continue
            if run is not None and _has_wrong_state(run):
                lines += self._close_flow_run(run, flow_processes.orphan_reason(flow_run_id) or WHY)
            flow_processes.forget(flow_run_id)
        return lines

    def _flow_run(self, flow_run_id: str) -> Json | None:
        """None when it was deleted."""
        try:
            found: Json = get(f"{self.settings.prefect}/flow_runs/{flow_run_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return found

    def _close_task_runs(self) -> list[str]:
        """Close open task runs of ended flow runs, at the second check: their final state may be on its way.

        Those of flow runs that were just closed are closed at once.
        """
        wanted: Json = {
            "task_runs": {"state": {"type": {"any_": OPEN}}},
            "flow_runs": {"state": {"type": {"any_": FINAL}}},
        }
        if not self.settings.own_prefect:
            wanted["flow_runs"]["id"] = {"any_": list(self.closed)}
        found = self._pages("/task_runs/filter", wanted)
        due = [t for t in found if t["id"] in self.open_task_runs or t["flow_run_id"] in self.closed]
        ours = self._ours({t["flow_run_id"] for t in due} - self.closed.keys()) | self.closed.keys()
        lines = [self._close_task_run(task) for task in due if task["flow_run_id"] in ours]
        self.open_task_runs = {task["id"] for task in found}
        return lines

    def _close_task_run(self, task: Json) -> str:
        why = self.closed.get(task["flow_run_id"], "its flow run has ended without it")
        if task["state_type"] == "PENDING":
            state = {"type": "CANCELLED", "name": "NotRun", "message": f"not run: {why}"}
        else:
            state = {"type": "CRASHED", "message": why}
        self._set_state("task_runs", task["id"], state)
        return f"task run {task['name']} ({task['id']}): closed, since {why}"

    def _ours(self, flow_run_ids: set[str]) -> set[str]:
        """Those whose labels say that this checkout started them."""
        if not flow_run_ids:
            return set()
        runs = self._pages("/flow_runs/filter", {"flow_runs": {"id": {"any_": sorted(flow_run_ids)}}})
        identities = {run["id"]: Identity.from_tags(run.get("labels") or {}) for run in runs}
        return {run_id for run_id, identity in identities.items() if identity and identity.ours()}


def _is_alive(run: Json) -> bool:
    identity = Identity.from_tags(run.get("labels") or {})
    return identity is not None and identity.alive() and run["state_type"] in OPEN


def _has_wrong_state(run: Json) -> bool:
    """Whether the state of an abandoned run differs from what its files say."""
    state = run["state_type"]
    if state in OPEN or (flow_processes.orphan_reason(run["id"]) and state != "COMPLETED"):
        return True
    return state == "CRASHED" and flow_processes.end_of(run["id"]) is not None


def _tags(run: Json) -> dict[str, str]:
    return {t["key"]: t["value"] for t in run["data"].get("tags", [])}
