"""A training that is stopped after some epochs and begun again, beside one that is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight.artifact import Artifact
from overnight.errors import Stopped
from overnight.run import RecordingRun


def whole_and_resumed(
    body: Callable[..., Artifact], params: Any, given: Artifact, make: Callable[[Path], RecordingRun],
    folder: Path, epochs: int = 1,
) -> tuple[Artifact, Artifact, RecordingRun]:  # fmt: skip
    """The models, and the run that went on. epochs: after which it is stopped."""
    whole = body(make(folder / "whole"), params, given)
    stopped, again = make(folder / "stopped"), make(folder / "again")
    for run in (stopped, again):
        run.checkpoints = folder / "checkpoints"
    stopped.should_stop = lambda: len(stopped.curve("val/loss")) == epochs
    with pytest.raises(Stopped):
        body(stopped, params, given)
    return whole, body(again, params, given), again
