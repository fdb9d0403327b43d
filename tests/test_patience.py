"""Servers that hang: a stop does not wait for them, and what they were not told is kept."""

import threading

import pytest

from overnight.errors import Stopped
from overnight.launch import Stop
from overnight.patience import Aside, patiently
from overnight.services import owed
from overnight.tracking import Shipper


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
    assert patiently(lambda: 3, Stop()) == 3
    assert patiently(lambda: 3, stopped()) == 3
    with pytest.raises(ValueError, match="refused"):
        patiently(lambda: int("refused"), Stop())


def test_a_stop_ends_the_waiting_and_only_a_stop(hang):
    with pytest.raises(Stopped, match="no answer"):
        patiently(hang, stopped(), grace_s=0.2)
    stop, reached = Stop(), threading.Event()

    def slow():
        reached.wait()
        return "late"

    threading.Timer(0.5, reached.set).start()
    assert patiently(slow, stop, grace_s=0.0) == "late"


def test_what_is_only_shown_is_left_out_while_a_server_hangs(hang):
    shown, aside = [], Aside()
    aside(lambda: shown.append(1))
    aside.finish(10)
    aside(hang)
    aside(lambda: shown.append(2))
    aside.finish(0.1)
    assert shown == [1]


def test_an_end_that_could_not_be_told_is_owed(hang, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))

    class Hung:
        def close(self, *_):
            hang()

    shipper = Shipper(Hung(), "a-run", "step")
    assert shipper.finish("KILLED", stopped()) == 0
    assert owed.of_mlflow("a-run")["status"] == "KILLED"


def test_nothing_is_owed_when_it_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    told = []

    class Well:
        def close(self, *words):
            told.append(words)

    assert Shipper(Well(), "a-run", "step").finish("FINISHED", Stop()) == 0
    assert told == [("a-run", "FINISHED")]
    assert owed.of_mlflow("a-run") is None
