"""Everything that overnight raises on purpose. A message says what was asked, what is the case, what to do.

exit_code: of the command; child_code: of the process of a step.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from overnight.paths import shown

# what others' code raises for what it cannot take; other exceptions are mistakes of ours
FAILURES = (
    AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip


class OvernightError(Exception):
    """The root: what overnight can explain without a traceback."""

    exit_code = 1
    child_code = 1


class BadInput(OvernightError):
    """What was asked cannot be done; `problems` lists every mistake found."""

    exit_code = 2
    child_code = 10

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(BadInput):
    """A config, an override or a data set entry is wrong."""


class DataError(BadInput):
    """A data file is missing, damaged, or of another format than its entry says."""


class Unavailable(DataError):
    """A server that has the data gives no answer now."""


class ServiceError(BadInput):
    """A service cannot start or cannot be reached, or the card cannot be used."""


class TooLate(BadInput):
    """The time that a run is to be done by has passed."""


class OutOfMemory(OvernightError):
    """A step needed more memory than its lease."""

    child_code = 11


class DoesNotFit(OvernightError):
    """A step needs more than it can be given, even at the smallest micro-batch."""

    exit_code = 3
    child_code = 12


class Stopped(OvernightError):
    """The run was asked to stop, by a signal or by a cancellation."""

    child_code = 13


class DiskFull(OvernightError):
    """No room is left for what a step was to write."""

    child_code = 14


class RestartProcess(OvernightError):
    """A fresh process is to continue from the checkpoint: memory ran out, or others need the card."""

    child_code = 15


class Diverged(OvernightError):
    """A loss became NaN, infinite, or larger than 1e4 times the first loss."""


class StepFailed(OvernightError):
    """A step of the pipeline failed; the message names each of them with its reason."""


def file_error(path: Path, problem: str) -> DataError:
    return DataError(f"{shown(path)}: {problem}")


def did_you_mean(given: str, known: Iterable[str], form: Callable[[str], str] = repr) -> str:
    """`; did you mean 'x'?` with the nearest of the known names; empty when none is near."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {form(close[0])}?" if close else ""


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
