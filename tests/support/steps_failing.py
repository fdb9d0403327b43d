"""Steps that fail for a while, or for good."""

import socket
from pathlib import Path

from overnight import Params, Run, step


class FailingParams(Params):
    """kind: network or bug; times: how many attempts fail; folder: where the attempts are counted."""

    kind: str = "network"
    times: int = 2
    folder: str = ""


@step
def fails(run: Run, params: FailingParams) -> None:
    """Fail the first times."""
    number = len(list(Path(params.folder).glob("attempt-*")))
    Path(params.folder, f"attempt-{number}").touch()
    run.metric("tried", number, 0)
    run.metric("tried", number, number + 1)
    if number >= params.times:
        return
    if params.kind == "bug":
        raise KeyError("cnn")
    with socket.socket() as probe:  # a port on which nothing listens
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    socket.create_connection(("127.0.0.1", port), 5)
