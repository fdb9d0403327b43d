"""One service over its lives: when it is started again, and when those that wait for it are told that it fails."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from overnight.services.definitions import NO_ANSWER, ServiceSpec
from overnight.services.supervisor import Service
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
