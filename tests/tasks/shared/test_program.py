"""A program as a step: how it is started, how it ends, and what is said of it."""

import signal
import sys

import pytest

from overnight.errors import BadInput, OvernightError, Stopped
from overnight.run import RecordingRun
from tasks.shared.program import ProgramParams, run_program

SHOW = "import os, sys; open('seen', 'w').write(os.environ.get('OVERNIGHT_LEASED_MIB', '') + sys.argv[1])"


def run_in(folder, command, **more):
    run = RecordingRun(folder, **more)
    run_program.body(run, ProgramParams(command=command, cwd=folder))
    return run


def test_a_list_is_started_as_it_stands_and_a_line_by_the_shell(tmp_path):
    run_in(tmp_path, (sys.executable, "-c", SHOW, "a b; $HOME"))
    assert (tmp_path / "seen").read_text() == "a b; $HOME"
    run = run_in(tmp_path, "x=3; echo $x | cat > seen", budget_mib=2000)
    assert (tmp_path / "seen").read_text() == "3\n"
    assert run.last("exit_code") == 0
    assert "caps nothing" in run.of("log")[0]["text"]


def test_a_program_with_a_lease_knows_how_much_it_is(tmp_path):
    run_in(tmp_path, (sys.executable, "-c", SHOW, " MiB"), budget_mib=2000)
    assert (tmp_path / "seen").read_text() == "2000 MiB"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [("exit 3", 3, "exit code 3"), (f"kill -{int(signal.SIGTERM)} $$", 143, "signal 15")],
)
def test_a_failing_program_fails_with_its_code(tmp_path, command, code, said):
    run = RecordingRun(tmp_path)
    with pytest.raises(OvernightError, match=said):
        run_program.body(run, ProgramParams(command=command, cwd=tmp_path))
    assert run.last("exit_code") == code
    run.should_stop = lambda: True
    with pytest.raises(Stopped):
        run_program.body(run, ProgramParams(command=command, cwd=tmp_path))


@pytest.mark.parametrize(
    ("command", "cwd", "said"),
    [(["no-such-program"], ".", "No such file"), ("true", "nowhere", "No such file")],
)
def test_a_program_that_cannot_be_started_is_bad_input(tmp_path, command, cwd, said):
    with pytest.raises(BadInput, match=said):
        run_program.body(RecordingRun(tmp_path), ProgramParams(command=command, cwd=tmp_path / cwd))
