"""The flows that Prefect knows, and what a deployment may be asked to run."""

import subprocess
import sys
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import flows
from overnight import locks
from overnight.errors import ConfigError, Stopped
from overnight.orchestration import prefect
from overnight.orchestration.prefect import checked


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vision.yaml").write_text("flow: vision\ncnn: {epochs: 3}\n")
    return tmp_path


def test_a_flow_of_one_s_own_is_run_without_being_named_anywhere(checkout, monkeypatch):
    (checkout / "flows").mkdir()
    (checkout / "flows" / "mine.py").write_text(
        "from overnight import Experiment, pipeline\n\n\n@pipeline\n"
        'def mine(cfg: Experiment) -> None:\n    """Mine."""\n'
    )
    monkeypatch.setattr(flows, "__path__", [*flows.__path__, str(checkout / "flows")])
    own = prefect.flow_of("mine")
    assert (own.name, own.description) == ("mine", "Mine.")
    assert list(own.parameters.properties) == ["config", "overrides"]


def test_a_deployment_runs_files_of_the_checkout(checkout):
    assert checked("vision", "configs/vision.yaml") == checkout / "configs" / "vision.yaml"
    assert (
        checked("vision", str(checkout / "configs" / "vision.yaml")) == checkout / "configs" / "vision.yaml"
    )


@pytest.mark.parametrize(
    "config", ["../vision.yaml", "/etc/passwd", "configs/../../vision.yaml", "configs/link.yaml"]
)
def test_a_deployment_runs_nothing_outside(checkout, config):
    (checkout.parent / "vision.yaml").write_text("flow: vision\n")
    (checkout / "configs" / "link.yaml").symlink_to(checkout.parent / "vision.yaml")
    with pytest.raises(ConfigError, match="inside"):
        checked("vision", config)


@pytest.mark.parametrize(
    "override",
    [
        "experiments.mine.command=reboot",
        "experiments.mine.cwd=/tmp",
        "experiments.0={command: reboot}",
        "experiments=[{command: reboot}]",
    ],
)
def test_a_deployment_runs_no_command_that_the_file_does_not_name(checkout, override):
    (checkout / "configs" / "night.yaml").write_text(
        "flow: nightly\nexperiments: [{config: vision.yaml}, {command: x, name: mine}]\n"
    )
    assert checked("nightly", "configs/night.yaml", ["experiments.mine.vram=3", "experiments.0.cnn.epochs=1"])
    with pytest.raises(ConfigError, match="commands that stand in the file"):
        checked("nightly", "configs/night.yaml", [override])


def test_a_config_of_another_flow_names_the_deployment_to_take(checkout):
    with pytest.raises(
        ConfigError,
        match=r"configs/vision.yaml: is a config of 'vision'; run it by the deployment vision/vision",
    ):
        checked("etl", "configs/vision.yaml")


def test_a_config_that_is_not_there_is_said_so(checkout):
    with pytest.raises(ConfigError, match=r"did you mean configs/vision.yaml"):
        checked("vision", "configs/visoin.yaml")


def test_a_night_by_hand_does_not_overlap_another(checkout):
    path = checkout / "configs" / "nightly.yaml"
    path.write_text("flow: nightly\n")
    lock = checkout / ".overnight" / "locks" / "configs-nightly.yaml.lock"
    with locks.hold(lock, "the first night"), pytest.raises(locks.Held, match="the first night"):
        prefect.run_here("nightly", path)


class Asked:
    """A run that is asked whether it is to stop, each time it finds the lock held."""

    def __init__(self, release, reason=""):
        self.release, self.reason = release, reason

    def stop_reason(self):
        self.release()
        return self.reason


def test_a_missed_night_waits_for_the_one_before_it_where_all_are_run(checkout):
    path = checkout / "configs" / "nightly.yaml"
    lock = checkout / ".overnight" / "locks" / "configs-nightly.yaml.lock"
    with ExitStack() as before:
        before.enter_context(locks.hold(lock, "the night before"))
        with pytest.raises(locks.Held), prefect._in_turn("nightly", path, Asked(before.close), waits=False):
            pass
        with (
            pytest.raises(Stopped, match="cancelled"),
            prefect._in_turn("nightly", path, Asked(lambda: None, "cancelled"), waits=True),
        ):
            pass
        assert "the night before" in str(locks.holder(lock))
        with prefect._in_turn("nightly", path, Asked(before.close), waits=True):
            assert "a run by hand" in str(locks.holder(lock))
    assert locks.holder(lock) is None


RUN = """
import os, sys, time
from overnight.orchestration.prefect import PrefectEngine
by_worker, by_hand = PrefectEngine(os.getppid()), PrefectEngine()
print(repr(by_worker.stop_reason()), flush=True)
while not by_worker.stop_reason():
    time.sleep(0.05)
print(by_worker.stop_reason(), repr(by_hand.stop_reason()), sep="; ", flush=True)
"""
WORKER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"


def test_a_run_whose_worker_was_killed_is_to_stop_and_knows_why(monkeypatch):
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, RUN], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "''\n"
    worker.kill()
    worker.wait()
    assert worker.stdout.readline() == f"its worker (pid {worker.pid}) is gone: killed, or broken down; ''\n"


def test_a_server_that_is_away_when_a_run_ends_is_waited_for(monkeypatch):
    asked = []

    class Starting(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if len(asked) > 2 else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Starting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        assert not prefect.wait_for_server(0)
        assert prefect.wait_for_server(60)
        server.shutdown()
    assert asked == ["/api/health"] * 3
