"""The flows that Prefect knows, and what a deployment may be asked to run."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from overnight import locks
from overnight.errors import ConfigError
from overnight.orchestration import deployments
from overnight.orchestration.deployments import checked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vision.yaml").write_text("flow: vision\ncnn: {epochs: 3}\n")
    return tmp_path


def test_every_flow_has_its_deployment():
    files = {p.stem for p in (REPOSITORY / "flows").glob("*.py")} - {"__init__"}
    entries = {d["name"]: d for d in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]}
    assert files <= set(deployments.flows) == set(entries)
    for name, entry in entries.items():
        assert entry["entrypoint"] == f"overnight.orchestration.deployments.{name}"
        assert deployments.flows[name].name == name
        assert deployments.flows[name].fn.__doc__


def test_a_flow_of_one_s_own_is_run_without_being_named_there():
    own = deployments.flow_of("my_own")
    assert own.name == "my_own"
    assert list(own.parameters.properties) == ["config", "overrides"]
    assert deployments.flow_of("vision") is deployments.vision


def test_the_parameters_are_a_config_and_overrides():
    for name, flow in deployments.flows.items():
        assert {k: p.get("default") for k, p in flow.parameters.properties.items()} == {
            "config": f"configs/{name}.yaml",
            "overrides": [],
        }
        assert flow.validate_parameters({"config": "a.yaml", "overrides": ["a=1"]}) == {
            "config": "a.yaml",
            "overrides": ["a=1"],
        }


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
        deployments.run_here("nightly", path)


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
        assert not deployments.until_it_answers(0)
        assert deployments.until_it_answers(60)
        server.shutdown()
    assert asked == ["/api/health"] * 3
