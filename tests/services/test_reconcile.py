"""What says Running runs: the supervisor's look, against the real servers and processes that were really killed."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from overnight import locks, services
from overnight.gpu.card import virtual
from overnight.gpu.ledger.ledger import Ledger
from overnight.processes import Identity, Process, boot
from overnight.run import EventLogRun
from overnight.services import definitions, flow_processes
from overnight.services.reconcile import Reconciler, slots
from overnight.services.settings import Settings, supervisor_lock
from overnight.tracking import backlog
from overnight.tracking.backlog import End, Record
from overnight.tracking.client import hidden
from tests.support.checkouts import answered, living_in, make_checkout, prefect, prefect_get, until

pytestmark = pytest.mark.services


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with living_in(make_checkout(tmp_path_factory.mktemp("checkout"))) as root:
        services.up()
        yield root


@pytest.fixture
def dead(request) -> Identity:
    """Who a process of this checkout was, before it was killed."""
    mine = Identity.mine()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = Process.of(process.pid).started.partition(" ")[2]
    process.kill()
    process.wait()
    return Identity(mine.host, mine.state, mine.boot, process.pid, ticks)


# ------------------------------------------------------------------------------------------------ without services


def test_an_identity_is_read_back_and_tells_the_living_from_the_dead(folder):
    mine = Identity.mine()
    assert Identity.from_tags(mine.tags()) == mine
    assert (mine.ours(), mine.alive()) == (True, True)
    other = Identity(mine.host, mine.state, mine.boot, mine.pid, str(int(mine.started) + 1))
    assert not other.alive()  # the pid was given to somebody else
    assert not Identity(mine.host, mine.state, "another boot", mine.pid, mine.started).alive()
    assert not Identity("elsewhere", mine.state, boot(), mine.pid, mine.started).ours()
    assert Identity.from_tags({"overnight.host": "x"}) is None
    assert Identity.from_tags({}) is None


def test_an_obituary_says_what_died_and_when(folder):
    mine = Identity.mine()
    assert "last seen alive 2026-" in mine.death_reason(1.79e9)
    assert str(os.getpid()) in mine.death_reason()
    assert "machine" in Identity(mine.host, mine.state, "before", mine.pid, mine.started).death_reason()


def test_a_run_leaves_what_it_meant_to_say_until_somebody_has_read_it(folder):
    with flow_processes.running("a"):
        assert list(flow_processes.held()) == ["a"]
        assert flow_processes.abandoned() == []
        flow_processes.save_end("a", "COMPLETED", "Completed", "1 of 1")
    assert flow_processes.abandoned() == ["a"]
    assert flow_processes.end_of("a") == {"type": "COMPLETED", "name": "Completed", "message": "1 of 1"}
    flow_processes.forget("a")
    assert flow_processes.abandoned() == []
    assert flow_processes.end_of("a") is None
    with pytest.raises(ValueError, match="broke"), flow_processes.running("b"):
        raise ValueError("broke")
    assert flow_processes.abandoned() == ["b"]


def test_torn_files_say_nothing(folder):
    flow_processes.runs_folder().mkdir(parents=True)
    for text in ('{"type": "COM', "[]", '{"type": "COMPLETED"}'):
        (flow_processes.runs_folder() / "a.end").write_text(text)
        assert flow_processes.end_of("a") is None


def test_slots_are_gib_rounded_up():
    assert [slots(mib) for mib in (0, 1, 1024, 1025, 12288)] == [0, 1, 1, 2, 12]


def test_no_verdict_is_given_before_what_the_dead_wrote_last_is_uploaded(folder, dead):
    """However often its upload has failed, as on a disk that was full."""
    step = folder / ".overnight" / "steps" / "dead"
    step.mkdir(parents=True)
    tags = hidden({**dead.tags(), "overnight.folder": str(step)})
    run = {"info": {"run_id": "1"}, "data": {"tags": [{"key": k, "value": v} for k, v in tags.items()]}}
    answers = {"experiments/search": {"experiments": []}, "runs/search": {"runs": [run]}}
    asked = list[str]()

    class Mlflow(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path.partition("mlflow/")[2])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(asked[-1], {})).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mlflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reconciler = Reconciler(Settings("http://127.0.0.1:1/api", f"http://127.0.0.1:{server.server_port}"))
        reconciler.backlog_worker.failures = 9
        backlog.enqueue(step)
        assert reconciler._close_mlflow_runs() == []
        assert "runs/update" not in asked
        backlog.mark_done(step)
        assert len(reconciler._close_mlflow_runs()) == 1
        assert "runs/update" in asked
        server.shutdown()


# ------------------------------------------------------------------------------------------------ with services


def test_open_runs_of_a_dead_process_are_closed_with_the_reason_and_no_others(running, dead):
    mine = Identity.mine()
    elsewhere = Identity("elsewhere", dead.state, dead.boot, dead.pid, dead.started)
    flows = {
        who: flow_run(labels) for who, labels in (("dead", dead), ("alive", mine), ("elsewhere", elsewhere))
    }
    tasks = {who: prefect("/task_runs/", task(flows[who])) for who in flows}
    logged = {
        who: mlflow_run(identity, flows[who])
        for who, identity in (("dead", dead), ("alive", mine), ("elsewhere", elsewhere))
    }
    step = mlflow_run(
        dead, flows["dead"], **{"mlflow.parentRunId": logged["dead"], "mlflow.overnight.folder": str(running)}
    )
    until(lambda: state(flows["dead"])["type"] == "CRASHED" and task_state(tasks["dead"]) == "CRASHED")
    until(lambda: status(step)["status"] == status(logged["dead"])["status"] == "KILLED")
    assert str(dead.pid) in state(flows["dead"])["message"]
    for who in ("alive", "elsewhere"):
        assert (state(flows[who])["type"], task_state(tasks[who]), status(logged[who])["status"]) == (
            "RUNNING",
            "RUNNING",
            "RUNNING",
        )
        prefect(f"/flow_runs/{flows[who]}/set_state", {"state": {"type": "COMPLETED"}, "force": True})


def test_a_run_that_could_not_tell_its_end_ends_as_it_meant_to(running, dead):
    run, step = flow_run(dead), running / ".overnight" / "steps" / "told-nobody"
    with leaving(step):
        logged = mlflow_run(dead, "", **{"mlflow.overnight.folder": str(step)})
        record(logged, end=End(status="FINISHED", at=1.79e9)).write(step)
    with flow_processes.running(run):
        flow_processes.save_end(run, "COMPLETED", "Completed", "2 of 2 steps done")
    Reconciler(services.settings()).reconcile(0.0)
    assert state(run)["type"] == "COMPLETED"
    assert state(run)["message"] == "2 of 2 steps done"
    until(lambda: status(logged)["status"] == "FINISHED")
    assert status(logged)["end_time"] == 1_790_000_000_000
    until(lambda: flow_processes.abandoned() == [])


def test_what_a_killed_run_has_left_in_its_spool_is_told_before_it_is_closed(running, dead):
    step = running / ".overnight" / "steps" / "killed"
    with leaving(step):
        logged = mlflow_run(
            dead, "", **{"mlflow.overnight.folder": str(step), "mlflow.note.content": "what happened before"}
        )
        record(logged).write(step)
        spool = EventLogRun(step)
        spool.metrics({"loss": 0.5, "other": 1.0}, 3)
        spool.note("and then this")
        spool._writer.close()
    until(lambda: status(logged)["status"] == "KILLED")
    history = definitions.get(
        f"{services.settings().mlflow}/api/2.0/mlflow/metrics/get-history?run_id={logged}&metric_key=loss"
    )["metrics"]
    assert [(m["step"], m["value"]) for m in history] == [(3, 0.5)]
    (note,) = [t["value"] for t in json.loads(status(logged)["tags"]) if t["key"] == "mlflow.note.content"]
    assert note.startswith("what happened before\n\nand then this\n\nits process (pid")
    assert not backlog.is_pending(step)


@contextmanager
def leaving(step):
    """What a step leaves when its parent dies is put into place; only then does anybody look at it."""
    step.mkdir(parents=True)
    with backlog.uploading(step):
        backlog.enqueue(step)
        yield


def record(run_id, **more):
    return Record(uri=services.settings().mlflow, experiment="Default", label="step", run_id=run_id, **more)


def test_the_limit_follows_the_ledger_and_heals(running):
    def shown():
        return prefect_get("/v2/concurrency_limits/gpu0-vram")

    card = virtual()
    with Ledger(card.folder, card.budget_mib).acquire(2500):
        until(lambda: (shown()["limit"], shown()["active_slots"]) == (card.budget_mib // 1024, 3))
        edit = {"limit": 3, "active_slots": 9, "slot_decay_per_second": 0.5}
        prefect("/v2/concurrency_limits/gpu0-vram", edit, method="PATCH")
        until(
            lambda: (
                (shown()["limit"], shown()["active_slots"], shown()["slot_decay_per_second"])
                == (card.budget_mib // 1024, 3, 0)
            )
        )
    until(lambda: shown()["active_slots"] == 0)


def test_a_night_that_crashed_is_started_again_and_no_other(running, dead):
    (nightly,) = prefect("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})

    def night(name, kind, message="", tags=()):
        parameters = {
            "config": f"configs/{name}.yaml",
            "overrides": [],
        }  # of no file: started again, it fails
        body = {"state": {"type": "RUNNING"}, "parameters": parameters, "tags": list(tags)}
        run = prefect(f"/deployments/{nightly['id']}/create_flow_run", body)["id"]
        prefect(f"/flow_runs/{run}/labels", dead.tags(), method="PATCH")
        if kind != "RUNNING":
            said = {"state": {"type": kind, "message": message}, "force": True}
            prefect(f"/flow_runs/{run}/set_state", said)
        return run

    def runs_of(name):
        found = prefect("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [nightly["id"]]}}})
        return [r for r in found if r["parameters"].get("config") == f"configs/{name}.yaml"]

    ends = {
        night("cancelled", "CANCELLING"): "CANCELLED",
        night("failed", "FAILED", "1 of 2 steps done"): "FAILED",
        night("often", "RUNNING", tags=["started again: 2 of 2"]): "CRASHED",
        night("broken", "CRASHED", "Process exited with status code: 1. It has a bug."): "CRASHED",
        night("killed", "RUNNING"): "CRASHED",  # the last: when it is started again, the others were judged
    }
    (again,) = until(
        lambda: [r for r in runs_of("killed") if r["id"] not in ends], "the night to start again"
    )
    assert again["tags"] == ["started again: 1 of 2"]
    until(lambda: state(again["id"])["type"] == "FAILED")
    until(lambda: {run: state(run)["type"] for run in ends} == ends)
    later = Reconciler(services.settings())  # of a supervisor that was started anew
    later.reconcile(0.0)
    later.reconcile(0.0)
    names = ("cancelled", "failed", "often", "broken", "killed")
    assert [len(runs_of(name)) for name in names] == [1, 1, 1, 1, 2]


@pytest.mark.slow
def test_a_run_starts_the_services_again_when_their_supervisor_is_killed(running):
    code = "from overnight import services\nwith services.ensure('a run'):\n    print('in', flush=True)\n    input()"
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "in\n"
    supervisor = Process.of(locks.holder(supervisor_lock()).pid)
    os.kill(supervisor.pid, 9)
    until(lambda: not supervisor.alive())
    until(lambda: {r["state"] for r in services.status() if r["service"] != "user"} == {"ready"})
    run.communicate("\n")
    assert run.returncode == 0


def flow_run(identity):
    """A run of a flow of ours that is said to run."""
    flow = prefect("/flows/", {"name": "vision"})["id"]
    body = {"flow_id": flow, "state": {"type": "RUNNING"}, "parameters": {"config": "x", "overrides": []}}
    run = prefect("/flow_runs/", body)["id"]
    prefect(f"/flow_runs/{run}/labels", identity.tags(), method="PATCH")
    return run


def task(flow_run_id):
    return {
        "flow_run_id": flow_run_id,
        "task_key": "t",
        "dynamic_key": "0",
        "name": "t",
        "state": {"type": "RUNNING"},
    }


def state(flow_run_id):
    return prefect_get(f"/flow_runs/{flow_run_id}")["state"]


def task_state(made):
    return prefect_get(f"/task_runs/{made['id']}")["state_type"]


def mlflow_run(identity, flow_run_id, **more):
    tags = [
        {"key": k, "value": v}
        for k, v in {**hidden({**identity.tags(), "prefect.flow_run_id": flow_run_id}), **more}.items()
    ]
    body = {"experiment_id": "0", "tags": tags, "start_time": int(1000 * time.time())}
    return answered(
        lambda: definitions.ask(f"{services.settings().mlflow}/api/2.0/mlflow/runs/create", body)
    )["run"]["info"]["run_id"]


def status(run_id):
    found = answered(
        lambda: definitions.get(f"{services.settings().mlflow}/api/2.0/mlflow/runs/get?run_id={run_id}")
    )["run"]
    return {**found["info"], "tags": json.dumps(found["data"]["tags"])}
