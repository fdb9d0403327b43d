"""What goes on beside a run's steps: their events are shipped, and a cancellation in Prefect's UI is noticed."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from overnight.orchestration.prefect_artifacts import forgiving

if TYPE_CHECKING:
    from overnight.orchestration.pipeline import Chain

SHIP_S = 2.0
CANCEL_POLL_S = 2.0
LAST_S = 2.0  # at most, for the threads that only look and ship
CANCELLED = "cancelled in Prefect"


@contextlib.contextmanager
def watching(chain: "Chain", flow_run_id: str) -> Iterator[None]:
    """While the block runs: metrics are shipped every 2 s, and a cancellation in Prefect's UI is noticed as soon."""
    done = threading.Event()
    threads = [
        threading.Thread(target=_ship, args=(chain, done), daemon=True, name="ship"),
        threading.Thread(
            target=_watch_cancel, args=(chain, done, flow_run_id), daemon=True, name="watch-cancel"
        ),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(LAST_S)  # no longer: a server may hang


def _ship(chain: "Chain", done: threading.Event) -> None:
    while not done.wait(SHIP_S):
        for shipper in list(chain.shippers):
            with forgiving():
                shipper.go_on()
        chain.shippers[:] = [shipper for shipper in chain.shippers if not shipper.concluded]


def _watch_cancel(chain: "Chain", done: threading.Event, flow_run_id: str) -> None:
    from prefect import get_client

    while flow_run_id and not done.wait(CANCEL_POLL_S):
        with forgiving(), get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run_id)).state
            if state is not None and state.type.value in ("CANCELLING", "CANCELLED"):
                chain.stop.ask(CANCELLED)
                chain.stop.reason = (
                    CANCELLED  # the worker's SIGTERM may have come first: it was sent for this
                )
