"""Calls to servers that may hang: a timeout for stopped runs, and calls whose failure does not matter."""

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from overnight.errors import Stopped

T = TypeVar("T")
GRACE_S = 5.0  # for a server's answer while the run is being stopped


def call_until_stopped(call: Callable[[], T], stop: Callable[[], bool], grace_s: float = GRACE_S) -> T:
    """Return or raise what `call` does; once `stop()` is true, wait `grace_s` at most, then raise Stopped.

    The call then goes on in a daemon thread: its late effects must be harmless.
    """
    answer = Future[T]()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by `answer.result`
            answer.set_exception(error)

    _start(work, "call-until-stopped")
    until = 0.0
    while not wait([answer], 0.1).done:
        if stop():
            until = until or time.monotonic() + grace_s
            if time.monotonic() > until:
                raise Stopped(f"a server gave no answer for {grace_s:.0f} s while the run was being stopped")
    return answer.result()


def _start(call: Callable[[], object], name: str) -> threading.Thread:
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,), daemon=True, name=name)
    thread.start()
    return thread


@contextlib.contextmanager
def best_effort(note: Callable[[str], object] = lambda _text: None) -> Iterator[None]:
    """For calls that only show something, or that are tried again later. note: takes what went wrong."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - servers fail in many ways; training goes on
        logging.getLogger(__name__).debug("ignored: %s", error)
        note(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def repeating(call: Callable[[], object], every_s: float, join_s: float | None = None) -> Iterator[None]:
    """Call it in a thread every `every_s` while the block runs; join_s: to wait at most for the last call."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every_s):
            with best_effort():
                call()

    thread = threading.Thread(target=repeat, daemon=True, name="repeating")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(join_s)


class FireAndForget:
    """Runs calls in a daemon thread, one at a time; failures, and new calls while one hangs, are dropped."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], object]) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = _start(best_effort()(call), "fire-and-forget")

    def finish(self, wait_s: float) -> None:
        if self._thread is not None:
            self._thread.join(wait_s)
