"""`overnight serve`: the printed line works as it is, and Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from overnight import Artifact, RecordingRun
from overnight.cli.main import main
from overnight.cli.serve import _curl
from overnight.predictor import interface
from tasks.rl.train import AgentParams, train_agent
from tasks.vision.cnn import CnnParams, train_cnn
from tests.support.checkouts import free_port
from tests.tasks.vision.test_cnn import made

SHORT = {"total_steps": 64, "eval_every": 64, "eval_episodes": 1, "test_episodes": 1}


def agent(folder: Path) -> Artifact:
    return train_agent.body(RecordingRun(folder), AgentParams.model_validate(SHORT))


def classifier(folder: Path) -> Artifact:
    return train_cnn.body(
        RecordingRun(folder), CnnParams(epochs=1, batch=10, channels=8, blocks=1), made(folder)
    )


def test_the_line_names_an_image_that_is_there(tmp_path: Path) -> None:
    line = _curl(interface(classifier(tmp_path).path), tmp_path / "served", 5107)
    assert line.startswith(
        "curl -s http://127.0.0.1:5107/invocations -H 'Content-Type: application/json' -d '{"
    )
    (path,) = (tmp_path / "served").iterdir()
    assert json.dumps({"inputs": [{"image": str(path)}]}) in line


def test_a_port_that_is_taken_or_none_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["serve", str(tmp_path), "--port", "80"]) == 2
    assert "expected a port between 1024 and 65535" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("train", [agent, classifier])
def test_the_printed_line_works_and_ctrl_c_ends_it(tmp_path: Path, checkout: Path, train) -> None:
    model = train(tmp_path)
    command = [
        sys.executable,
        "-m",
        "overnight.cli.main",
        "serve",
        str(model.path),
        "--port",
        str(free_port()),
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=dict(os.environ), start_new_session=True
    )
    try:
        line = next(line for line in server.stdout if line.startswith("curl "))
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        (answer,) = json.loads(done.stdout)["predictions"]
        assert set(answer) == {column.name for column in interface(model.path).outputs}
        wrong = line.replace('"inputs"', '"inputs": [{"other": 1}], "was"')
        said = subprocess.run(["bash", "-c", wrong], capture_output=True, text=True, check=True).stdout
        assert "is missing" in said or "has 4 numbers" in said
    finally:
        os.kill(server.pid, signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
    assert "the server is down" in rest
    assert server.returncode == 0
