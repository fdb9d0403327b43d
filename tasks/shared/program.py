"""A program of the user's own as a step: it gets its turn on the card, and is watched until its end."""

import os
import subprocess
from pathlib import Path

from overnight import Params, Run, runtime_option, step
from overnight.errors import BadInput, OvernightError, Stopped
from overnight.gpu.lease import HELD
from overnight.paths import root
from overnight.processes import environment_of

VISIBLE = "CUDA_VISIBLE_DEVICES"


class ProgramParams(Params):
    command: str | tuple[str, ...]  # a line for the shell, or a program and its arguments
    cwd: Path | None = None  # where it runs; the checkout when left out
    vram_mib: int | None = runtime_option(
        None, "MiB to lease: 0 for nothing; when left out the whole card, until its peak was measured"
    )


@step(gpu=True, uncapped=True, program=True, reproducible=False)
def run_program(run: Run, params: ProgramParams) -> None:
    """Logs exit_code. Raises BadInput when it cannot be started, OvernightError when it fails."""
    if run.budget_mib:
        run.log(f"leased {run.budget_mib:,} MiB of the card, which caps nothing here: it is watched alone")
    is_line = isinstance(params.command, str)
    cwd = params.cwd or root()
    try:
        process = subprocess.Popen(
            params.command, shell=is_line, cwd=cwd, env=_environment(run), stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise BadInput(f"{params.command!r} in {cwd}: cannot be started: {error.strerror}") from None
    code = process.wait()  # a signal to stop goes to the whole group, and so to it as well
    run.metric("exit_code", code if code >= 0 else 128 - code)
    if run.should_stop():
        raise Stopped("stopped")
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise OvernightError(f"the command {how}; its output is in log.txt")


def _environment(run: Run) -> dict[str, str]:
    """As the step's process was given it: what was set for torch since is not the program's."""
    given = environment_of(os.getpid())
    if run.budget_mib:
        given |= {HELD: str(run.budget_mib), VISIBLE: os.environ.get(VISIBLE, "")}
    return given
