"""Steps that end oddly: what they leave behind, what they say, and what arrives all the same."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from overnight import paths, processes
from overnight.events import readable
from overnight.files import atomic_write
from overnight.gpu.card import virtual
from overnight.orchestration import launcher
from overnight.orchestration.attempt import run_step
from overnight.orchestration.child import _failed
from overnight.orchestration.launcher import LOG_LINES, Tail
from overnight.orchestration.pipeline import Pending, PipelineRun, _close
from overnight.orchestration.prefect import as_state
from overnight.orchestration.protocol import StepResult
from overnight.orchestration.terminal import Display
from overnight.run import EventLogRun
from overnight.tracking.backlog import Record
from overnight.tracking.client import Tracker
from overnight.tracking.uploader import Uploader

ODD = "bad [/red] tag [bold] \udc80"


def sleeper(mark: str) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, as a step may leave it."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={processes.STEP_MARK: mark},
        start_new_session=True,
    )
    assert process.stdout is not None
    # Only now does the kernel surely show its environment: for an instant after exec it shows none.
    process.stdout.readline()
    return process


def test_brackets_in_a_message_are_text():
    display = Display(Console(file=io.StringIO(), width=200))
    row = display.add("part/[/x]")
    display.change(row, "failed", "bad [/red] tag [bold]")
    display.console.print(display.summary())
    display.console.print(display.table())
    assert display.console.file.getvalue().count("bad [/red] tag [bold]") == 3


def test_what_is_no_text_is_written_readably(tmp_path):
    run = EventLogRun(tmp_path)
    run.note(ODD)
    assert readable((tmp_path / "events.jsonl").read_text())["text"] == "bad [/red] tag [bold] ?"
    atomic_write(tmp_path / "result.json", _failed(1, ODD).model_dump_json())
    assert StepResult.model_validate_json((tmp_path / "result.json").read_text()).error.endswith("?")


def test_every_event_that_a_run_writes_is_readable(tmp_path):
    run = EventLogRun(tmp_path)
    run.metric("a", float("nan"))
    run.param("a", 1)
    run.log("a")
    run.progress(1, 2)
    run.data("a", "digest")
    run.publish(tmp_path)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [readable(line)["event"] for line in lines] == [
        "metrics",
        "param",
        "log",
        "progress",
        "data",
        "publish",
    ]


@pytest.mark.parametrize(
    "line", ['{"event": "metr', "[]", "null", '"x"', "3", '{"event": "metrics"}', '{"event": ["note"]}', "{}"]
)
def test_a_line_that_is_no_event_is_none(line):
    assert readable(line) is None


def test_a_flood_of_lines_is_cut_and_counted(tmp_path):
    log = tmp_path / "log.txt"
    tail = Tail(log)
    log.write_text("".join(f"line {i}\n" for i in range(200_000)))
    shown = tail.read(last=False)
    assert len(shown) == LOG_LINES + 1
    assert shown[-2] == "line 199999"
    assert "not shown here" in shown[-1]
    with log.open("ab") as file:
        file.write(b"x" * (4 << 20))
    shown = tail.read(last=False)
    assert len(shown) == 2
    assert all(len(line) < 70_000 for line in shown)
    assert tail.read(last=True) == []


def test_a_process_that_left_the_group_ends_with_its_step(checkout):
    mine, others = (paths.steps() / name for name in ("mine", "others"))
    kept, gone = sleeper(processes.step_mark(others)), sleeper(processes.step_mark(mine))
    assert processes.kill_step_processes(mine) == [gone.pid]
    assert gone.wait(5) == -9
    assert kept.poll() is None
    assert processes.kill_step_processes() == []
    kept.communicate()


def test_what_a_killed_run_left_is_found_by_its_owner(checkout):
    owner = subprocess.Popen([sys.executable, "-c", ""])
    owner.wait()
    dead = processes.step_mark(paths.steps() / "step").replace(str(os.getpid()), str(owner.pid), 1)
    foreign = processes.step_mark(Path("/elsewhere/.overnight/steps/step")).replace(
        str(os.getpid()), str(owner.pid), 1
    )
    left, kept = sleeper(dead), sleeper(foreign)
    assert processes.kill_step_processes() == [left.pid]
    assert left.wait(5) == -9
    kept.communicate()


def test_a_step_whose_task_run_never_began_counts_as_failed():
    display = Display(Console(file=io.StringIO()))
    run = PipelineRun(None, None, None, "run", display, None, None)
    pending = Pending("step", None, [], display.add("step"))
    pending.ended.set()
    run.pending.append(pending)
    run.wait()
    assert pending.row.state == "failed"
    assert "Prefect" in pending.reason


def test_all_that_is_below_a_failed_step_is_not_run_and_does_not_count_as_failed():
    display = Display(Console(file=io.StringIO()))
    run, above = PipelineRun(None, None, None, "run", display, None, None), []
    for name in ("first", "second", "third", "fourth"):
        pending = Pending(name, None, above, display.add(name))
        run.pending.append(pending)
        above = [pending]
    first, second, third, fourth = run.pending
    first.result = StepResult(code=12, error="does not fit")
    assert as_state(
        run_step(run, second, [], None)
    ).is_failed()  # below anything else that is not completed Prefect begins nothing
    assert as_state(run_step(run, third, [], None)).name == "NotRun"
    for pending in run.pending:
        pending.ended.set()
    first.reason = "does not fit"
    run.wait()
    assert [p.row.state for p in (second, third, fourth)] == ["not run"] * 3
    assert fourth.reason == "not run: third was not run"


def test_a_score_of_an_odd_name_does_not_leave_the_run_open(checkout):
    tracker, display = Tracker(f"sqlite:///{checkout}/mlflow.db", "odd"), Display(Console(file=io.StringIO()))
    own = Uploader(
        tracker, launcher.new_folder("odd"), Record(uri=tracker.uri, experiment="odd", label="odd")
    )
    run = PipelineRun(SimpleNamespace(name="odd"), virtual(), tracker, own, display, None, None)
    row = display.add("step")
    row.state, row.scores = "done", {"test/a(b)": 1.0, "test/accuracy": 0.5}
    run.pending.append(Pending("step", SimpleNamespace(address="odd:step", gpu=False), [], row))
    assert _close(run).state == "done"
    run = tracker.client.get_run(own.run_id)
    assert run.data.metrics == {"score": 1.0, "step/a_b_": 1.0, "step/accuracy": 0.5}
    assert run.info.status == "FINISHED"
