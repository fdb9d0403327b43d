"""One service over its lives: when it is started again, and when those that wait for it are told that it fails."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from overnight.services import definitions
from overnight.services.definitions import NO_ANSWER, ServiceSpec
from overnight.services.settings import Settings
from overnight.services.supervisor import STUCK_S, Service, log_size, tail
from tests.support.checkouts import until

LIVES, DIES = (
    ["-c", "import time; time.sleep(600)"],
    ["-c", "raise SystemExit(7)"],
)


@contextmanager
def service(command: list[str], well: bool) -> Iterator[Service]:
    """One that is well as long as it lives, or never."""
    one = Service(
        ServiceSpec("one", command, problem=lambda _before: "" if well else NO_ANSWER), dict(os.environ)
    )
    try:
        yield one
    finally:
        one.stop()


def state(one: Service, *wanted: str) -> bool:
    """One look at it; whether it is in one of these states now."""
    one.tick(set())
    return one.state in wanted


def test_a_service_that_is_killed_while_it_is_well_comes_back_however_often(checkout):
    with service(LIVES, well=True) as one:
        for _ in range(4):
            until(lambda: state(one, "ready"))
            os.kill(one.process.pid, signal.SIGKILL)
            until(lambda: state(one, "retrying", "failed"))
            assert (one.state, "killed by signal 9" in one.note) == ("retrying", True)
            one.next_start = 0.0  # its pauses grow, and are not what this is about


def test_a_service_that_never_gets_well_counts_as_failed_and_is_tried_on(checkout):
    said = list[str]()
    with service(DIES, well=False) as one:
        for _ in range(4):
            until(lambda: state(one, "starting"))
            until(lambda: state(one, "retrying", "failed"))
            said.append(one.state)
            one.next_start = 0.0
    assert said == ["retrying", "retrying", "failed", "failed"]


def made(database: Path) -> list[str]:
    """A server that makes its database at its start, and lives."""
    write = f"import pathlib, time; pathlib.Path({str(database)!r}).touch(); time.sleep(600)"
    return ["-c", write]


def test_a_service_whose_database_is_removed_or_replaced_is_started_again_and_says_so(checkout, tmp_path):
    database = tmp_path / "made.db"
    spec = ServiceSpec(
        "one", made(database), lambda _: "" if database.exists() else NO_ANSWER, database=database
    )
    one = Service(spec, dict(os.environ))
    until(lambda: state(one, "ready"))
    for harm in (database.unlink, lambda: database.rename(tmp_path / "old") and database.touch()):
        before = one.process.pid
        harm()
        one.checked = 0.0
        assert state(one, "retrying")
        one.next_start = 0.0
        until(lambda: state(one, "ready"))
        assert one.process.pid != before
        assert "since its database was removed or replaced" in one.row()["note"]
    one.stop()


def test_a_service_that_takes_no_writes_is_unhealthy_with_the_reason_and_started_again(checkout):
    problem = ["takes no writes: read-only"]
    one = Service(ServiceSpec("one", LIVES, lambda _: problem[0]), dict(os.environ))
    until(lambda: state(one, "unhealthy"))
    assert one.row()["note"] == problem[0]
    pid = one.process.pid
    one.checked = 0.0
    one.changed -= STUCK_S + 1
    assert state(one, "retrying")
    problem[0] = ""
    one.next_start = 0.0
    until(lambda: state(one, "ready"))
    assert (one.process.pid != pid, one.row()["note"]) == (True, "")
    one.stop()


@pytest.mark.parametrize("what", ["full", "gone", "taken"])
def test_what_is_in_the_way_of_a_start_is_named_and_waited_for(checkout, tmp_path, monkeypatch, what):
    spec = ServiceSpec("one", LIVES, lambda _: "", database=tmp_path / "mlruns" / "made.db")
    with socket.socket() as other:
        if what == "full":
            monkeypatch.setattr(definitions, "ROOM_MIB", 1 << 40)
        elif what == "gone":
            (tmp_path / "mlruns").symlink_to(tmp_path / "a disk that is not there")
        else:
            other.bind(("127.0.0.1", 0))
            other.listen()
            spec = replace(spec, port=other.getsockname()[1], variable="OUR_PORT")
        one = Service(spec, dict(os.environ))
        assert state(one, "unhealthy")
        assert {"full": "is full", "gone": "not there", "taken": "set OUR_PORT"}[what] in one.note
    monkeypatch.undo()
    (tmp_path / "mlruns").unlink(missing_ok=True)
    one.next_start = 0.0
    until(lambda: state(one, "ready"))
    one.stop()


def test_what_failed_with_an_environment_is_started_with_another(checkout):
    needs = "import os, time; os.environ['NEEDED']; time.sleep(600)"
    one = Service(ServiceSpec("one", ["-c", needs], lambda _: ""), {})
    for _ in range(3):
        one.next_start = 0.0
        until(lambda: state(one, "starting"))
        one.popen.wait()
        assert state(one, "retrying", "failed")
    assert (one.state, "NEEDED" in one.note) == ("failed", True)
    one.renew(one.spec, {"NEEDED": "yes"})
    until(lambda: state(one, "ready"))
    one.stop()


def test_a_message_quotes_a_log_of_this_start_alone(checkout, tmp_path):
    log = tmp_path / "x.log"
    log.write_text("what an earlier start said\n")
    begin = log_size(log)
    assert "earlier" in tail(log)
    assert "earlier" not in tail(log, start=begin)
    with log.open("a") as file:
        file.write("now\n")
    assert tail(log, start=begin).startswith("now (")


def test_a_clock_that_steps_back_makes_no_worker_hang(checkout, monkeypatch):
    """Its heartbeats are compared with each other: two hours before its start by the clock is well."""
    beats = [{"name": definitions.WORKER, "last_heartbeat_time": "2026-01-02T03:00:00Z"}]
    answers = {"/csrf-token": {"token": "x"}, "/filter": beats}

    class Prefect(BaseHTTPRequestHandler):
        def do_GET(self):
            found = next(answer for path, answer in answers.items() if path in self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Prefect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        now = Settings(f"http://127.0.0.1:{server.server_port}/api", "http://127.0.0.1:1")
        worker = definitions.services(now)[-1]
        before = worker.before()
        assert worker.problem(before) == NO_ANSWER  # that of the worker before
        beats[0]["last_heartbeat_time"] = "2026-01-02T01:00:00Z"
        assert worker.problem(before) == ""
        server.shutdown()
