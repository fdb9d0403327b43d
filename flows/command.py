"""Give any program its turn on the card."""

from pathlib import Path

from pydantic import field_validator

from overnight import Experiment, pipeline, runtime_option
from tasks.shared.program import ProgramParams, run_program


class Command(Experiment):
    """A program, and how much of the card it gets. Nothing caps it; it is watched."""

    command: str | tuple[str, ...]  # a line for the shell, or a program and its arguments
    cwd: Path | None = None  # where it runs; the checkout when left out
    # MiB of the card; 0: nothing. When left out the whole card, until its peak was measured
    vram: int | None = runtime_option(None, "MiB of the card to lease", ge=0)

    @field_validator("command")
    @classmethod
    def _not_empty(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not "".join(given).strip():
            raise ValueError('expected a line for the shell, or a list: ["python", "my.py", "--x", "1"]')
        return given


@pipeline
def command(cfg: Command) -> None:
    """A program of your own, queued, leased, watched, its output in MLflow."""
    run_program(ProgramParams(command=cfg.command, cwd=cfg.cwd, vram_mib=cfg.vram))
