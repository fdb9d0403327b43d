"""Calls to servers that may hang: a timeout for stopped runs, and calls whose failure does not matter."""

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from overnight.errors import Stopped

T = TypeVar("T")
GRACE_S = 5.0  # for a server's answer while the run is being stopped


def call_until_stopped(call: Callable[[], T], stop: Callable[[], bool], grace_s: float = GRACE_S) -> T:
    """Return or raise what `call` does, however long it takes; once `stop()` is true, wait `grace_s` at most.

    Raises Stopped when that time is over. The call then goes on in a daemon thread: its late effects must be
    harmless.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), daemon=True, name="call-until-stopped"
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


@contextlib.contextmanager
def best_effort() -> Iterator[None]:
    """Ignore and log any exception: for calls that only show something, or that are tried again later."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - servers fail in many ways; training goes on
        logging.getLogger(__name__).debug("a server did not answer: %s", error)


class FireAndForget:
    """Runs calls in a daemon thread, one at a time; failures, and new calls while one hangs, are dropped."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], object]) -> None:
        def work() -> None:
            with best_effort():
                call()

        if self._thread is None or not self._thread.is_alive():
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(work,), daemon=True, name="fire-and-forget")
            self._thread.start()

    def finish(self, wait_s: float) -> None:
        if self._thread is not None:
            self._thread.join(wait_s)
