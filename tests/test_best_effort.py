"""Servers that hang: a stop does not wait for them, and what they did not receive is kept."""

import threading

import pytest

from overnight.best_effort import FireAndForget, call_until_stopped, repeating
from overnight.errors import Stopped
from overnight.orchestration.launcher import Stop
from overnight.tracking import backlog
from overnight.tracking.backlog import Record
from overnight.tracking.client import NOTE_TAG, RunState
from overnight.tracking.uploader import Uploader


@pytest.fixture
def hang():
    """A server that never answers, until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


def stopped():
    stop = Stop()
    stop.ask("stopped by Ctrl-C")
    return stop


def test_an_answer_and_an_error_come_through():
    assert call_until_stopped(lambda: 3, Stop()) == 3
    assert call_until_stopped(lambda: 3, stopped()) == 3
    with pytest.raises(ValueError, match="refused"):
        call_until_stopped(lambda: int("refused"), Stop())


def test_a_stop_ends_the_waiting_and_only_a_stop(hang):
    with pytest.raises(Stopped, match="no answer"):
        call_until_stopped(hang, stopped(), grace_s=0.2)
    stop, reached = Stop(), threading.Event()

    def slow():
        reached.wait()
        return "late"

    threading.Timer(0.5, reached.set).start()
    assert call_until_stopped(slow, stop, grace_s=0.0) == "late"


def test_what_is_only_shown_is_left_out_while_a_server_hangs(hang):
    shown, aside = [], FireAndForget()
    aside(lambda: shown.append(1))
    aside.finish(10)
    aside(hang)
    aside(lambda: shown.append(2))
    aside.finish(0.1)
    assert shown == [1]


class Server:
    """Takes everything; at the end of a run it does what it is asked to."""

    def __init__(self, at_the_end=lambda: None):
        self.at_the_end, self.received = at_the_end, []

    def lost(self, _run_id, _created):
        return False

    def run_state(self, _run_id):
        return RunState({}, "", {})

    def tags(self, *words):
        self.received.append(words)

    def close(self, *words):
        self.at_the_end()
        self.received.append(words)


def uploader(checkout, server):
    folder = checkout / "step"
    folder.mkdir()
    return Uploader(server, folder, Record(uri="", experiment="x", label="step", run_id="a-run"))


def test_an_end_that_could_not_be_told_is_owed(hang, checkout):
    hung = uploader(checkout, Server(hang))
    assert not hung.finish("KILLED", stopped())
    assert backlog.is_pending(hung.folder)
    assert Record.read(hung.folder).end.status == "KILLED"


def test_nothing_is_owed_when_it_was_told(checkout):
    well = uploader(checkout, Server())
    well.log({"event": "note", "text": "done"})
    assert well.finish("FINISHED", Stop())
    assert [words[:2] for words in well.tracker.received] == [
        ("a-run", {NOTE_TAG: "done"}),
        ("a-run", "FINISHED"),
    ]
    assert not backlog.is_pending(well.folder)


def test_what_is_repeated_goes_on_after_a_failure():
    calls = threading.Semaphore(0)

    def fail():
        calls.release()
        raise OSError("no server")

    with repeating(fail, every_s=0.001):
        assert all(calls.acquire(timeout=60) for _ in range(3))


def test_a_server_that_hangs_keeps_no_step_from_beginning(hang, checkout):
    class Hung(Server):
        def run_state(self, _run_id):
            hang()

    hung = uploader(checkout, Hung())
    assert not hung.wait_until_open(lambda: False, patience_s=0.1)
    assert hung.upload() is False  # somebody is waiting for the server already, and that is enough
    hung.log({"event": "note", "text": "begun"})
    assert hung.waiting() == 1
