"""The services, really started: in a checkout of their own, on ports that were free, and gone at the end."""

import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from overnight import locks, paths, services
from overnight.errors import ServiceError
from overnight.services import backup, definitions, flow_processes, register
from overnight.services.settings import (
    Settings,
    keep_file,
    read_state,
    supervisor_lock,
    users_folder,
)
from overnight.step import flow_names
from tests.support.checkouts import OURS, free_port, living_in, make_checkout, prefect, processes, until

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with living_in(make_checkout(tmp_path_factory.mktemp("checkout"))) as root:
        yield root


@pytest.fixture(scope="module")
def running(checkout: Path) -> Path:
    """Two `up` at the same moment: one set of services."""
    starts = [
        subprocess.Popen([sys.executable, "-c", "from overnight import services; services.up()"])
        for _ in range(2)
    ]
    assert [s.wait() for s in starts] == [0, 0]
    return checkout


class Healthy(BaseHTTPRequestHandler):
    """A server of the user, as far as we ask it."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *args: object) -> None:
        pass


def rows() -> dict[str, services.Row]:
    return {r["service"]: r for r in services.status()}


# ------------------------------------------------------------------------------------------------ before anything is started


def test_a_port_that_is_taken_is_named_with_its_holder_and_its_setting(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("OVERNIGHT_ROOT", str(make_checkout(tmp_path)))
        monkeypatch.setenv("OVERNIGHT_MLFLOW_PORT", str(port))
        with pytest.raises(ServiceError) as caught:
            services.up()
    message = str(caught.value)
    for part in ("mlflow", str(port), f"pid {os.getpid()}", "OVERNIGHT_MLFLOW_PORT"):
        assert part in message
    assert not processes(tmp_path)
    assert not keep_file().exists()
    assert {r["state"] for r in services.status()} == {"down"}


def test_settings_come_from_prefect_toml_and_variables(tmp_path, monkeypatch):
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    assert services.settings().prefect == "http://127.0.0.1:4207/api"
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://localhost:4300/api"\n')
    assert services.settings().prefect_port == 4300
    monkeypatch.setenv("OVERNIGHT_PREFECT_PORT", "4301")
    assert services.settings().prefect_port == 4301
    monkeypatch.setenv("OVERNIGHT_PREFECT_PORT", "80")
    with pytest.raises(ServiceError, match="OVERNIGHT_PREFECT_PORT=80"):
        services.settings()
    monkeypatch.delenv("OVERNIGHT_PREFECT_PORT")
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "https://elsewhere.example/api"\n')
    with pytest.raises(ServiceError, match="elsewhere"):
        services.settings()


def test_servers_of_the_user_are_honoured_and_named(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///somewhere/else")
    now = services.settings()
    assert (now.own_prefect, now.own_mlflow) == (False, False)
    assert [s.name for s in definitions.services(now)] == ["deployments", "worker"]
    assert services.environment()["MLFLOW_TRACKING_URI"] == "file:///somewhere/else"
    assert "PREFECT_HOME" not in services.environment()  # their profile may hold a key for their server
    assert rows()["prefect"]["note"] == "named by $PREFECT_API_URL"
    assert rows()["mlflow"]["state"] == "not ours"
    with (
        pytest.raises(ServiceError, match=f"PREFECT_API_URL=http://127.0.0.1:{port}/api: gives no answer"),
        services.ensure(),
    ):
        pass
    assert not processes(tmp_path)


def test_a_run_with_servers_of_the_user_starts_nothing(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
        with services.ensure("a run"):
            assert rows()["user"]["note"] == "a run"
            assert not processes(tmp_path)
        server.shutdown()


def test_our_own_address_in_the_environment_is_still_ours(tmp_path, monkeypatch):
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    for name, value in services.environment().items():  # as a flow inherits it from the worker
        monkeypatch.setenv(name, value)
    assert services.settings() == Settings.asked({})
    assert services.settings().own_prefect


def test_a_database_of_another_version_is_copied_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    database = tmp_path / "mlflow.db"
    assert not backup.due("mlflow", database)  # there is none
    with sqlite3.connect(database) as connection:
        connection.execute("create table kept (value text)")
        connection.execute("insert into kept values ('before')")
    assert backup.due("mlflow", database)
    copies = [backup.copy("mlflow", database) for _ in range(1)]
    (tmp_path / ".overnight" / "services").mkdir()
    backup.opened("mlflow")
    assert not backup.due("mlflow", database)
    with sqlite3.connect(copies[0]) as connection:
        assert connection.execute("select value from kept").fetchall() == [("before",)]


def test_schedules_that_are_wrong_end_the_program_with_two(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    (tmp_path / "prefect.yaml").write_text("x: [")
    assert register.main() == 2
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith("prefect.yaml: not readable")


# ------------------------------------------------------------------------------------------------ one set of services, in this order


def test_two_starts_at_once_end_with_one_set(running):
    found = rows()
    assert list(found) == ["prefect", "mlflow", "deployments", "worker"]
    assert {r["state"] for r in found.values()} == {"ready"}
    commands = [" ".join(p.cmdline()) for p in processes(running)]
    for part in (
        "overnight.services 60",
        "services.server prefect",
        "services.server mlflow",
        "worker start",
    ):
        assert sum(part in c for c in commands) == 1, commands
    supervisor = locks.holder(supervisor_lock())
    assert not any(backup.due(*database) for database in definitions.databases(services.settings()))
    services.up()  # a third one changes nothing
    assert locks.holder(supervisor_lock()) == supervisor
    found["deployments"]["since"] = rows()["deployments"]["since"]  # looked at again
    assert rows() == found


def test_everything_listens_on_this_machine_only(running):
    ports = {services.settings().prefect_port, services.settings().mlflow_port}
    listening = {
        c.laddr
        for p in processes(running)
        for c in p.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert ports <= {a.port for a in listening}
    assert {a.ip for a in listening} == {"127.0.0.1"}


def answer_to(port: int, path: str, method: str = "GET", **headers: str) -> int:
    """The status of an answer to these headers; a websocket is asked for by `Upgrade`."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, headers=headers)
    return connection.getresponse().status


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_foreign_pages_get_nothing(running, server):
    now = services.settings()
    port = {"prefect": now.prefect_port, "mlflow": now.mlflow_port}[server]
    paths_of = ("/", "/health", "/api/health", "/api/csrf-token?client=x", "/api/2.0/mlflow/experiments/list")
    for foreign in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{port}"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Origin": f"http://evil.example:{port}"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        assert {answer_to(port, path, **foreign) for path in paths_of} == {403}
        assert answer_to(port, "/", "OPTIONS", **foreign) == 403
        assert answer_to(port, "/api/events/in", **UPGRADE, **foreign) == 403
    own = {"Origin": f"http://localhost:{port}"}
    assert answer_to(port, "/", **own) == 200
    if server == "prefect":
        assert answer_to(port, "/api/events/in", **UPGRADE, **own) == 101
        assert answer_to(port, "/api/flows/filter", "POST") == 403  # no token


@pytest.mark.parametrize("wish", [{"command": "id"}, {"env": {"A": "b"}}, {"working_dir": "/"}])
def test_a_run_chooses_no_command_no_variable_and_no_folder(running, wish):
    (deployment,) = prefect("/deployments/filter", {"deployments": {"name": {"any_": ["vision"]}}})
    with pytest.raises(urllib.error.HTTPError) as caught:
        prefect(f"/deployments/{deployment['id']}/create_flow_run", {"job_variables": wish})
    assert caught.value.code == 422
    (pool,) = prefect("/work_pools/filter", {})
    assert "{{" not in str(pool["base_job_template"])


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_a_server_whose_database_takes_no_writes_is_not_well(running, server):
    spec = next(one for one in definitions.services(services.settings()) if one.name == server)
    assert spec.problem(None) == ""
    with closing(sqlite3.connect(spec.database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # it can still be read
        assert spec.problem(None)
        other.execute("ROLLBACK")
    until(lambda: spec.problem(None) == "", "the next write")


def test_a_deployment_for_each_flow_and_a_night_that_is_due(running):
    found = {d["name"]: d for d in prefect("/deployments/filter", {})}
    assert sorted(found) == flow_names()
    for name, deployment in found.items():
        assert (
            deployment["parameter_openapi_schema"]["properties"]["config"]["default"]
            == f"configs/{name}.yaml"
        )
        assert set(deployment["parameter_openapi_schema"]["properties"]) == {"config", "overrides"}
        assert len(deployment["schedules"]) == (name == "nightly")
    (schedule,) = found["nightly"]["schedules"]
    assert schedule["schedule"]["cron"] == "30 3 * * *"
    assert schedule["schedule"]["timezone"] == register.local_timezone()
    assert all(deployment["description"] for deployment in found.values())
    due = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    until(
        lambda: len(prefect("/flow_runs/filter", due)) >= 3
    )  # Prefect's scheduler works with the libraries that are installed
    limits = prefect("/v2/concurrency_limits/filter", {})
    assert [x["active_slots"] for x in limits if x["name"] == "gpu0-vram"] == [0]


def test_a_changed_schedule_takes_effect_at_the_next_up_while_services_run(running):
    file = running / "prefect.yaml"
    before = file.read_text()
    due = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    try:
        for cron, minute in (("7 4 * * *", 7), ("30 3 * * *", 30)):
            file.write_text(before.replace("30 3 * * *", cron))
            services.up()
            (nightly,) = prefect("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
            assert [one["schedule"]["cron"] for one in nightly["schedules"]] == [cron]
            until(lambda: prefect("/flow_runs/filter", due), "the nights that are due")
            starts = {run["expected_start_time"][14:16] for run in prefect("/flow_runs/filter", due)}
            assert starts == {f"{minute:02}"}  # none is left of the schedule before
    finally:
        file.write_text(before)


def test_a_plain_shell_in_the_checkout_starts_a_deployment_and_sees_it_fail_with_a_reason(running):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") or k == "PREFECT_HOME"}
    env["PREFECT_HOME"] = str(running / "home-of-the-shell")  # not the user's own
    command = [
        sys.executable,
        "-m",
        "prefect",
        "deployment",
        "run",
        "vision/vision",
        "-p",
        "config=../elsewhere.yaml",
        "--watch",
    ]
    done = subprocess.run(command, cwd=running, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    (run,) = prefect("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}})
    assert "inside" in run["state"]["message"]
    assert "Traceback" not in paths.log_file("worker").read_text()


def test_a_night_that_runs_already_cancels_the_second_and_is_named(running):
    (deployment,) = prefect("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    with locks.hold(running / ".overnight" / "locks" / "configs-nightly.yaml.lock", "the first night"):
        run = prefect(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {}})
        wanted = {
            "flow_runs": {
                "id": {"any_": [run["id"]]},
                "state": {"type": {"any_": ["CANCELLED", "FAILED", "COMPLETED", "CRASHED"]}},
            }
        }
        until(lambda: bool(prefect("/flow_runs/filter", wanted)))
    (state,) = [r["state"] for r in prefect("/flow_runs/filter", wanted)]
    assert state["type"] == "CANCELLED"
    assert f"the first night (pid {os.getpid()}" in state["message"]
    assert not (flow_processes.runs_folder() / f"{run['id']}.lock").exists()


def test_a_run_that_left_a_file_and_no_process_is_closed(running):
    (deployment,) = prefect("/deployments/filter", {"deployments": {"name": {"any_": ["vision"]}}})
    dead, living = (
        prefect(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "PENDING"}})
        for _ in range(2)
    )
    for run in (dead, living):
        prefect(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    with flow_processes.running(living["id"]):
        left = flow_processes.runs_folder() / f"{dead['id']}.lock"
        left.touch()
        os.utime(left, (1, 1))
        until(lambda: not left.exists())  # the supervisor looks every 10 s
        states = {
            r["id"]: r["state_type"]
            for r in prefect("/flow_runs/filter", {"flow_runs": {"id": {"any_": [dead["id"], living["id"]]}}})
        }
    assert states == {dead["id"]: "CRASHED", living["id"]: "RUNNING"}
    assert not (flow_processes.runs_folder() / f"{living['id']}.lock").exists()


def test_a_service_that_is_killed_comes_back(running):
    before = rows()["mlflow"]["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: rows()["mlflow"]["state"] == "ready" and rows()["mlflow"]["pid"] != before)
    until(
        lambda: definitions.answers(f"{services.settings().mlflow}/health")
    )  # a loaded machine answers late
    until(lambda: rows()["prefect"]["state"] == "ready")  # the others did not notice


def test_a_prefect_that_starts_again_without_its_database_gets_the_deployments(running):
    before = rows()["prefect"]["pid"]
    for file in (paths.services() / "prefect").glob("prefect.db*"):
        file.unlink()
    os.kill(before, signal.SIGKILL)
    until(lambda: rows()["prefect"]["pid"] not in (None, before) and rows()["prefect"]["state"] == "ready")
    until(lambda: "vision" in [one["name"] for one in prefect("/deployments/filter", {})], "the deployment")


def test_down_waits_for_nobody_but_asks_before_it_takes_the_services_from_a_run(running):
    code = "from overnight import services\nwith services.ensure('a long run'):\n    print('in', flush=True)\n    input()"
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "in\n"
    assert rows()["user"]["note"] == "a long run"
    with pytest.raises(ServiceError, match=f"a long run \\(pid {run.pid}"):
        services.down()
    assert rows()["prefect"]["state"] == "ready"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert "user" not in rows()


@pytest.mark.slow
def test_a_supervisor_that_is_killed_leaves_nothing_in_the_way(running):
    before = {name: r["pid"] for name, r in rows().items()}
    supervisor = locks.holder(supervisor_lock())
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: locks.holder(supervisor_lock()) is None)
    assert {r["state"] for r in services.status()} == {"down"}
    start = subprocess.Popen([sys.executable, "-c", "from overnight import services; services.up()"])
    second = until(
        lambda: next(
            (pid for pid in [read_state().get("supervisor")] if pid not in (None, supervisor.pid)), None
        )
    )
    os.kill(second, signal.SIGKILL)
    assert start.wait() == 0  # though the second was killed while it was waited for
    after = rows()
    assert {r["state"] for r in after.values()} == {"ready"}
    assert not {r["pid"] for r in after.values() if r["pid"]} & {p for p in before.values() if p}
    assert len([p for p in processes(running) if "server prefect" in " ".join(p.cmdline())]) == 1


def test_down_leaves_no_process_and_may_be_said_twice(running):
    assert processes(running)
    services.down()
    assert not processes(running)
    assert {r["state"] for r in services.status()} == {"down"}
    assert not locks.users(users_folder())
    services.down()


def test_nobody_needs_them_nobody_keeps_them(checkout):
    """What a run has started ends by itself; the time to wait is the supervisor's argument."""
    services.down()
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "overnight.services", "0.5"], stdout=subprocess.DEVNULL
    )
    until(lambda: bool(read_state()) or supervisor.poll() is not None)
    assert supervisor.wait() == 0
    assert not processes(checkout)
