"""What a step shows of itself in Prefect's UI: the link to its MLflow run and its progress. Nobody waits for any of it."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from overnight.best_effort import Aside

PROGRESS_S = 5.0  # each update is a line of `prefect deployment run --watch`, too
LAST_S = 2.0  # at most, for the last of it


class Traces:
    """Artifacts of one task run."""

    def __init__(self, label: str) -> None:
        self.label, self.aside = label, Aside()
        self._artifact: Any = None
        self._told = 0.0

    def link(self, address: str) -> None:
        """To the step's MLflow run, when that has a page."""
        from prefect.artifacts import create_link_artifact

        def tell() -> None:
            with forgiving():
                create_link_artifact(
                    address, "MLflow run", key=f"mlflow-{_slug(self.label)}", description=self.label
                )

        if address.startswith("http"):
            self.aside(tell)

    def progress(self, percent: float, text: str) -> None:
        """At most every 5 s."""
        if time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            self.aside(lambda: self._show(percent, f"{self.label} {text}"))

    def finish(self, done: bool) -> None:
        """The last word of a progress that was shown."""
        self.aside.finish(LAST_S)
        if self._artifact is not None and done:
            self.aside(lambda: self._show(100.0, f"{self.label} "))
            self.aside.finish(LAST_S)

    def _show(self, percent: float, description: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        with forgiving():
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    percent, key=_slug(self.label), description=description
                )
            else:
                update_progress_artifact(self._artifact, percent, description=description)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """What is only shown (progress, links) or tried again (metrics) never ends a run because a server is away."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - servers fail in many ways; training goes on
        logging.getLogger(__name__).debug("a server did not answer: %s", error)


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in label.lower()).strip("-") or "step"
