"""The keys that the config of a night has beside its experiments."""

from datetime import time
from typing import Any

from pydantic import field_validator

from overnight.config import Experiment, runtime_option
from overnight.night.clean import Keep
from overnight.night.notify import FORM, Notify


class NightValues(Experiment):
    """What a night has beside its experiments; it changes no result."""

    # a time of this machine's clock: what does not fit before it is left out, what runs then is stopped
    done_by: time | None = runtime_option(None, "when the night is to end, as 07:00")
    price_per_kwh: float | None = runtime_option(None, "for the cost in the report", ge=0)
    notify: Notify = runtime_option(Notify(), f"who gets the first lines of the report: {FORM}")
    keep: Keep = runtime_option(Keep(), "what stays on the disk after it")

    @field_validator("done_by", mode="before")
    @classmethod
    def _time_of_day(cls, given: Any) -> Any:
        """Yaml reads 10:30 as a number of minutes."""
        if isinstance(given, int) and not isinstance(given, bool) and 60 <= given < 24 * 60:
            return time(*divmod(given, 60))
        if given is None or isinstance(given, time) or (isinstance(given, str) and ":" in given):
            return given
        raise ValueError('expected a time of day, as "07:00"')
