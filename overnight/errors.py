"""Everything that overnight raises on purpose.

    OvernightError          command exit 1, child exit 1
    ├── BadInput            2, 10   what was asked cannot be done
    │   ├── ConfigError             a config, an override or an entry is wrong: all mistakes at once
    │   ├── DataError               a file is missing, damaged, or not what its entry says
    │   └── ServiceError            a port is taken, a service does not start, the card is unusable
    ├── OutOfMemory         1, 11   the step needed more than its lease
    ├── DoesNotFit          3, 12   no card of this size can run it
    ├── Stopped             1, 13   asked to stop, and did
    ├── DiskFull            1, 14   no room left for what was to be written
    ├── RestartProcess      1, 15   a fresh process is to continue from the checkpoint
    ├── Diverged            1, 1    a loss became NaN, infinite or far too large
    └── StepFailed          1, 1    a step of the pipeline ended badly

A message says what was asked, what is the case, and what to do.
"""

from collections.abc import Sequence


class OvernightError(Exception):
    """The root: something that overnight can explain without a traceback."""

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


class ServiceError(BadInput):
    """A service cannot start or cannot be reached, or the card cannot be used."""


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
