"""Programs of the user's own: in a night of three, and alone by `overnight exec`."""

import json
import subprocess
import sys

import pytest

from overnight.cli.main import main
from overnight.gpu.card import virtual
from overnight.memory import request
from overnight.paths import steps
from tasks.shared.program import ProgramParams, run_program
from tests.support.checkouts import living_in, make_checkout, prefect

NIGHT = """
flow: nightly
experiments:
  - {command: echo one line; echo another, vram: 500, name: fine}
  - {command: echo broken >&2; exit 3, vram: 500, name: failing}
  - {command: [PYTHON, greedy.py], vram: 1000, name: greedy}
"""
GREEDY = """
import os, time
from overnight.gpu.card import virtual
from overnight.gpu.device_usage import holders
card = virtual()
(card.folder / "other_processes").write_text(f"2600 pid={os.getpid()} greedy\\n")
while not any(other.owner.get("peak_mib", 0) >= 2600 for other in holders(card)):
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    (root / "configs" / "night.yaml").write_text(NIGHT.replace("PYTHON", sys.executable))
    (root / "greedy.py").write_text(GREEDY)
    with pytest.MonkeyPatch.context() as patch, living_in(root):
        patch.setenv("OVERNIGHT_VIRTUAL_MIB", "4000")
        patch.setenv("OVERNIGHT_COUNT", "1")
        yield root


def overnight(*words):
    command = [sys.executable, "-m", "overnight.cli.main", *words]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return ended.stdout, ended.returncode


def folder_of(label):
    return max(steps().glob(f"*-{label}run_program-*"))


@pytest.mark.slow
@pytest.mark.services
def test_three_programs_in_a_night_are_told_apart(home):
    output, code = overnight("run", "night")
    assert code == 1, output
    assert "2 of 3 steps done; failing/run_program failed: the command ended with exit code 3" in output
    assert "greedy/run_program: took 2,600 MiB of the card and had asked for 1,024" in output
    assert "2,600 of 1,024 MiB" in output
    begun = {"flow_runs": {"start_time": {"is_null_": False}}}  # the others are nights to come
    assert [run["state_type"] for run in prefect("/flow_runs/filter", begun)] == ["FAILED"]
    assert (folder_of("fine-") / "log.txt").read_text() == "one line\nanother\n"
    assert (folder_of("failing-") / "log.txt").read_text() == "broken\n"
    result = json.loads((folder_of("greedy-") / "result.json").read_text())
    assert (result["code"], result["peak_mib"], result["exclusive"]) == (0, 2600, True)
    again = request.plan_request(
        run_program,
        [ProgramParams(command=(sys.executable, "greedy.py"), vram_mib=1000)],
        virtual(count=True),
    )
    assert (again.mib, again.exclusive) == (2944, False)  # what it took, and a margin


@pytest.mark.slow
@pytest.mark.services
def test_exec_shows_the_output_and_ends_with_the_code_of_its_command(home):
    output, code = overnight(
        "exec", "--vram", "100", "--name", "mine", "--", "sh", "-c", "echo he''llo; exit 5"
    )
    assert code == 5, output
    assert "hello\n" in output
    assert "ended with exit code 5" in output
    output, code = overnight("exec", "--vram", "0", sys.executable, "-c", "print('no', 'card')")
    assert code == 0, output
    assert "no card" in output
    assert json.loads((folder_of("") / "spec.json").read_text())["request"]["mib"] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no command was given"),
        (
            ["--vram", "9", "--", "no-such-program"],
            2,
            "no-such-program: there is no such program on the PATH",
        ),
        (["--vram", "-1", "true"], 2, "--vram -1: expected MiB of the card, 0 or more"),
    ],
)
def test_a_command_that_cannot_run_is_refused_before_anything_starts(checkout, capsys, words, code, said):
    assert (main(["exec", *words]), said in capsys.readouterr().err) == (code, True)
