"""Servers that hang: nobody waits for what is only shown, and a run that is being stopped waits for nothing for long."""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from overnight.errors import Stopped

T = TypeVar("T")
GRACE_S = 5.0  # for what a stopped run still has to say


def patiently(call: Callable[[], T], stop: Callable[[], bool], grace_s: float = GRACE_S) -> T:
    """What *call* returns or raises, however long it takes; when the run is being stopped, no longer than the grace. Raises Stopped.

    The call goes on in a thread that nobody waits for; what it changes must not harm when it comes late.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), daemon=True, name="patiently"
    )
    thread.start()
    until = 0.0
    while thread.is_alive():
        thread.join(0.1)
        if stop():
            until = until or time.monotonic() + grace_s
            if time.monotonic() > until and thread.is_alive():
                raise Stopped(f"a server gave no answer for {grace_s:.0f} s while the run was being stopped")
    if failure:
        raise failure[0]
    return outcome[0]


@contextmanager
def best_effort() -> Iterator[None]:
    """Errors in the block are logged and go no further: it only shows something, or is tried again."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - servers fail in many ways; training goes on
        logging.getLogger(__name__).debug("a server did not answer: %s", error)


class Aside:
    """Calls that nobody waits for, one at a time: while one hangs, others are left out."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], object], wait_s: float = 0.0) -> None:
        """Start it, after waiting a little for the one before."""
        if self._thread is not None:
            self._thread.join(wait_s)
            if self._thread.is_alive():
                return
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(call,), daemon=True, name="aside"
        )
        self._thread.start()

    def finish(self, wait_s: float) -> None:
        """Give the last one a little time."""
        if self._thread is not None:
            self._thread.join(wait_s)
