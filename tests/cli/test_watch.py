"""`overnight watch`: another process shows what a run's own terminal shows, and ends as it does."""

import io
import time

import pytest
from rich.console import Console

from overnight import paths
from overnight.cli.watch import watch
from overnight.errors import BadInput
from overnight.orchestration.terminal import ROWS, Display, StepRow
from overnight.processes import Identity
from overnight.tracking.backlog import Record


def saved(name: str, state: str, pid: int | None = None) -> None:
    """A run of this process, or of one that is gone, with a step that is done."""
    folder = paths.steps() / f"{name}-run"
    folder.mkdir(parents=True)
    (folder / "resolved.json").write_text("{}")
    tags = {**Identity.mine().tags(), "prefect.name": f"brave-{name}"}
    tags |= {} if pid is None else {"overnight.pid": str(pid)}
    Record(uri="x", experiment=name, label=name, tags=tags).write(folder)
    display = Display(Console(file=io.StringIO()))
    row = display.add("train_cnn")
    row.state = "done"
    row.scores = {"test/accuracy": 0.5}
    display.save(folder / ROWS, state, "1 of 1 steps done", "http://link")


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1), ("does not fit", 3), ("stopped", 1)])
def test_a_run_is_shown_to_its_end_and_ends_the_command_as_itself(checkout, capsys, state, code):
    saved("vision", state)
    assert watch("brave-vision") == code
    output = capsys.readouterr().out
    assert "train_cnn" in output
    assert "accuracy 0.5" in output
    assert "1 of 1 steps done\nhttp://link" in output


def test_a_run_whose_process_is_gone_has_failed_and_another_name_is_refused(checkout, capsys):
    saved("vision", "running", pid=2**22 + 1)
    assert watch() == 1
    assert "its process is gone" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no run is called 'visoin'; did you mean 'vision'"):
        watch("visoin")


def test_the_time_that_is_left_follows_the_pace_since_the_first_progress():
    row = StepRow("train", state="running", done=0.1)
    assert row.left() == ""
    row.first = (time.monotonic() - 60, 0.1)
    assert row.left() == ""
    row.done = 0.25
    assert row.left() == "about 5 min left"
    row.done = 0.7
    assert row.left() == "about 30 s left"
    Display(Console(file=io.StringIO())).progress(row, {"done": 7, "total": 10, "text": "", "at_most": True})
    assert row.left() == "at most 30 s left"
