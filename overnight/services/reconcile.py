"""Corrects what Prefect and MLflow show: closes runs whose process is gone, and mirrors the card's ledger.

A night that crashed is started again: its finished steps are kept, the others go on from their checkpoints.
Which process runs a run stands in Prefect's labels, MLflow's tags and a locked file. A run is closed when
this checkout on this machine started it and its process is gone; runs of other checkouts, machines and
programs are never touched. Only open runs are queried, since both servers filter by state; when there are
more than one request returns, the rest is found when these are closed.
"""

import json
import re
import time
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from overnight import locks
from overnight.errors import OvernightError
from overnight.gpu.card import Card, real, virtual
from overnight.gpu.ledger.ledger import Ledger
from overnight.processes import Identity
from overnight.services import flow_processes
from overnight.services.definitions import ask, ask_prefect
from overnight.services.settings import POOL, Settings, environment, users_folder
from overnight.tracking import backlog
from overnight.tracking.backlog import BacklogWorker
from overnight.tracking.client import NOTE_TAG, append_note

Json = dict[str, Any]
OPEN = ("RUNNING", "PENDING", "CANCELLING")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
JUST_NOW_S = 10  # an unlabelled run that has just begun may be about to get its labels
PENDING_S = 60  # a worker starts the process of a run at once
WHY = "its process is gone: killed, or the machine went down"
PARAMETERS = {"config", "overrides"}  # of every flow of this program
NIGHT = "nightly"  # the flow whose deployed runs are started again
AGAIN = "started again: "  # tag, with a number
MOST_AGAIN = 2  # what takes the machine down twice in a night would do so again
SAME_NIGHT_S = 18 * 3600.0  # since its start
EXIT_CODE = re.compile(r"status code:? (\d+)")  # of Prefect's worker; a signal has a negative one
MIRROR_S = 2.0
RESEND_S = 20.0  # a person or another program may have changed the limit
UNAVAILABLE_S = 10.0  # a server that hangs must not take the supervisor's time


class Reconciler:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed: dict[str, str] = {}  # flow runs that were closed, and why
        self.open_task_runs = set[str]()  # of ended flow runs, at the last check
        self.judged = set[str]()  # crashed nights that are started again, or are not to be
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
            self._correct_abandoned,
            self._close_task_runs,
            self._start_again,
        ]
        for parts in (mlflow, prefect):
            try:
                for part in parts:
                    lines += part()
            except (OSError, ValueError, KeyError):
                continue
        return lines

    # -------------------------------------------------------------------------------------------- MLflow

    def _close_mlflow_runs(self) -> list[str]:
        if not self.settings.mlflow.startswith("http"):
            return []
        api = f"{self.settings.mlflow}/api/2.0/mlflow"
        experiments = ask(f"{api}/experiments/search", {"max_results": 1000}).get("experiments", [])
        ours = f"tags.`mlflow.overnight.state` = {json.dumps(Identity.mine().state)}"
        query = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"attributes.status = 'RUNNING' and {ours}",
        }
        lines = []
        for run in ask(f"{api}/runs/search", query).get("runs", []):
            run_id = run["info"]["run_id"]
            tags = {tag["key"].removeprefix("mlflow."): tag["value"] for tag in run["data"].get("tags", [])}
            step = tags.get("overnight.folder", "")
            flow_run_id = tags.get("prefect.flow_run_id", "")
            why = _death_reason(Identity.from_tags(tags), flow_run_id, step)
            if not why or (step and backlog.is_pending(Path(step))):  # what it wrote last is uploaded first
                continue
            note = append_note(tags.get(NOTE_TAG.removeprefix("mlflow."), ""), why)
            ask(f"{api}/runs/set-tag", {"run_id": run_id, "key": NOTE_TAG, "value": note})
            end_ms = int((_last_seen(flow_run_id, step) or time.time()) * 1000)
            ask(f"{api}/runs/update", {"run_id": run_id, "status": "KILLED", "end_time": end_ms})
            lines.append(f"MLflow run {run['info'].get('run_name', '')} ({run_id}): closed, since {why}")
        return lines

    # -------------------------------------------------------------------------------------------- Prefect

    def _close_flow_runs(self, worker_since: float) -> list[str]:
        lines = []
        alive = set(flow_processes.held())
        for run in self._prefect("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": OPEN}}}}):
            if run["id"] in alive:
                continue
            identity = Identity.from_tags(run.get("labels") or {})
            why = _death_reason(identity, run["id"])
            if identity is None and self._has_no_process(run, worker_since):
                why = WHY
            if why:
                lines += self._close_flow_run(run, why)
        return lines

    def _has_no_process(self, run: Json, worker_since: float) -> bool:
        since = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        if not self.settings.own_prefect or time.time() - since < JUST_NOW_S:
            return False
        if run.get("deployment_id"):
            begun = since < worker_since or time.time() - since > PENDING_S
            in_pool = run.get("work_pool_name") == POOL
            return begun and in_pool and run["id"] not in flow_processes.flow_runs_of_processes()
        # A run by hand: of a process that uses the services, and does not run another one yet.
        busy = {holder.pid for holder in flow_processes.held().values()}
        starting = {user.pid for user in locks.users(users_folder())} - busy
        return (run.get("parameters") or {}).keys() >= PARAMETERS and not starting

    def _close_flow_run(self, run: Json, why: str) -> list[str]:
        """Set the state that it was about to report, else Crashed, or Cancelled if it was being cancelled."""
        kind = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
        state = flow_processes.end_of(run["id"]) or {"type": kind, "message": why}
        self._set_state("flow_runs", run["id"], state)
        self.closed[run["id"]] = why
        flow_processes.forget(run["id"])
        return [f"flow run {run['name']} ({run['id']}): closed as {state['type']}, since {why}"]

    def _correct_abandoned(self) -> list[str]:
        lines = []
        for flow_run_id in flow_processes.abandoned():
            if time.time() - flow_processes.last_seen(flow_run_id) < JUST_NOW_S:
                continue
            found = self._prefect("/flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
            run = found[0] if found else None  # None: it was deleted
            if run is not None and run["state_type"] in OPEN:
                identity = Identity.from_tags(run.get("labels") or {})
                if identity is not None and identity.alive():  # it is about to report its end
                    continue
                lines += self._close_flow_run(run, WHY)
            end = flow_processes.end_of(flow_run_id)
            if run is not None and end is not None and run["state_type"] == "CRASHED" != end["type"]:
                lines += self._close_flow_run(run, WHY)
            flow_processes.forget(flow_run_id)
        return lines

    def _close_task_runs(self) -> list[str]:
        """Close open task runs of ended flow runs, at the second check: their final state may be on its way.

        Those of flow runs that were just closed are closed at once. On a server that is not ours, there are
        no others.
        """
        flow_runs: Json = {"state": {"type": {"any_": FINAL}}}
        if not self.settings.own_prefect:
            flow_runs["id"] = {"any_": list(self.closed)}
        wanted = {"task_runs": {"state": {"type": {"any_": OPEN}}}, "flow_runs": flow_runs}
        lines = []
        found = self._prefect("/task_runs/filter", wanted)
        for task in found:
            if task["id"] not in self.open_task_runs and task["flow_run_id"] not in self.closed:
                continue
            why = self.closed.get(task["flow_run_id"], "its flow run has ended without it")
            state = {"type": "CRASHED", "message": why}
            if task["state_type"] == "PENDING":
                state = {"type": "CANCELLED", "name": "NotRun", "message": f"not run: {why}"}
            self._set_state("task_runs", task["id"], state)
            lines.append(f"task run {task['name']} ({task['id']}): closed, since {why}")
        self.open_task_runs = {task["id"] for task in found}
        return lines

    def _start_again(self) -> list[str]:
        """Start deployed nights again that crashed, each once; none that failed, or that a person cancelled.

        A night that runs meanwhile stops the new run at its lock (prefect._alone).
        """
        lines = []
        since = {"after_": datetime.fromtimestamp(time.time() - SAME_NIGHT_S, UTC).isoformat()}
        crashed = {"start_time": since, "state": {"type": {"any_": ["CRASHED"]}}}
        nights = {"flows": {"name": {"any_": [NIGHT]}}}
        for run in self._prefect("/flow_runs/filter", {**nights, "flow_runs": crashed}):
            if run["id"] in self.judged or self._is_alive(run):
                continue
            later = {"start_time": {"after_": run["start_time"] or run["expected_start_time"]}}
            others = self._prefect("/flow_runs/filter", {**nights, "flow_runs": later})
            again = _times_again(run) + 1
            if self._may_go_on(run, others) and again <= MOST_AGAIN:
                body = {
                    "parameters": run["parameters"],
                    "tags": [f"{AGAIN}{again} of {MOST_AGAIN}"],
                    "idempotency_key": f"again-{run['id']}",  # a supervisor that is killed here asks twice
                }
                self._prefect(f"/deployments/{run['deployment_id']}/create_flow_run", body)
                lines.append(f"flow run {run['name']} ({run['id']}): started again, since it crashed")
            self.judged.add(run["id"])
        return lines

    def _is_alive(self, run: Json) -> bool:
        identity = Identity.from_tags(run.get("labels") or {})
        return run["id"] in flow_processes.held() or (identity is not None and identity.alive())

    def _may_go_on(self, run: Json, others: list[Json]) -> bool:
        """Whether a crashed night is one of this checkout, would not crash at once again, and is the last."""
        identity = Identity.from_tags(run.get("labels") or {})
        ours = self.settings.own_prefect if identity is None else identity.ours()
        code = EXIT_CODE.search(run["state"].get("message") or "")
        has_exited = code is not None and int(code[1]) < 128
        config = run["parameters"].get("config")
        newer = [
            one
            for one in others
            if one["id"] != run["id"]
            and one["parameters"].get("config") == config
            and one["state_type"] not in ("SCHEDULED", "CANCELLED")  # at the lock of the night
        ]
        in_pool = bool(run.get("deployment_id")) and run.get("work_pool_name") == POOL
        return ours and in_pool and not has_exited and not newer

    def _prefect(self, path: str, wanted: Json) -> list[Json]:
        found: list[Json] = ask_prefect(self.settings, path, wanted)
        return found

    def _set_state(self, kind: str, run_id: str, state: Json) -> None:
        ask_prefect(self.settings, f"/{kind}/{run_id}/set_state", {"state": state, "force": True})


def _times_again(run: Json) -> int:
    """How often the night of this run has been started again before it."""
    tags = [tag.removeprefix(AGAIN) for tag in run.get("tags") or () if tag.startswith(AGAIN)]
    return max((int(tag.partition(" ")[0]) for tag in tags), default=0)


def _death_reason(identity: Identity | None, flow_run_id: str, step: str = "") -> str:
    if identity is None or not identity.ours():
        return ""
    # A process in another container has other pids, but the same locks.
    if identity.alive() or flow_run_id in flow_processes.held():
        return ""
    return identity.death_reason(_last_seen(flow_run_id, step))


def _last_seen(flow_run_id: str, step: str) -> float:
    written = flow_processes.last_written(Path(step)) if step else 0.0
    return max(flow_processes.last_seen(flow_run_id), written)


class VramLimitMirror:
    """Mirrors the GPU ledger in Prefect: a limit `gpu0-vram` for each card, one slot for each GiB.

    One way only: no run acquires the limit or waits for it.
    """

    def __init__(self) -> None:
        self.cards = list[Card]()
        self.sent: dict[int, Json] = {}
        self.next_update = 0.0
        self.next_resend = 0.0

    def update(self, settings: Settings) -> None:
        now = time.monotonic()
        if now < self.next_update:
            return
        self.next_update = now + MIRROR_S
        if now >= self.next_resend:
            self.sent.clear()
            self.next_resend = now + RESEND_S
        try:
            self.cards = self.cards or real() or [virtual()]
            for card in self.cards:
                values = _limit(card)
                if self.sent.get(card.index) != values:
                    _send_limit(settings, f"gpu{card.index}-vram", values)
                    self.sent[card.index] = values
        except (OSError, ValueError, KeyError, OvernightError):
            self.sent.clear()
            self.next_update = now + UNAVAILABLE_S


def _limit(card: Card) -> Json:
    limit = max(1, slots(card.budget_mib))
    held = slots(Ledger(card.folder, card.budget_mib).held_mib())
    return {"limit": limit, "active_slots": min(limit, held), "active": True, "slot_decay_per_second": 0}


def slots(mib: int) -> int:
    return -(-mib // 1024)


def _send_limit(settings: Settings, name: str, values: Json) -> None:
    try:
        ask_prefect(settings, f"/v2/concurrency_limits/{name}", values, method="PATCH")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        ask_prefect(settings, "/v2/concurrency_limits/", {"name": name, **values})
