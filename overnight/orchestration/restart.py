"""A step whose training leaves its process, to go on in a fresh one: the next child takes up where the one before was."""

from collections.abc import Callable

from overnight.errors import RestartProcess
from overnight.orchestration.child import Result, Spec

MOST = ("peak_mib", "device_peak_mib", "foreign_peak_mib", "host_peak_mib")


def through(start: Callable[[Spec], Result], spec: Spec) -> Result:
    """The result of the step's last child, with what all of them took; `start` runs one."""
    result = start(spec)
    while result.code == RestartProcess.child_code:
        spec = following(spec, result)
        result = joined(result, start(spec))
    return result


def following(spec: Spec, result: Result) -> Spec:
    """What the next child is asked for: its place in line is the old one, its micro-batch what was left of it."""
    size = result.micro_batch or spec.micro_batch
    smaller = tuple((mib, less) for mib, less in spec.smaller if size is None or less < size)
    return spec.model_copy(update={"ticket": result.ticket or None, "micro_batch": size, "smaller": smaller})


def joined(before: Result, after: Result) -> Result:
    """What both took, with the ending of the second."""
    most = {
        name: max((v for v in (getattr(before, name), getattr(after, name)) if v is not None), default=None)
        for name in MOST
    }
    return after.model_copy(
        update={
            **most,
            "wait_s": before.wait_s + after.wait_s,
            "run_s": before.run_s + after.run_s,
            "asked_micro_batch": before.asked_micro_batch or after.asked_micro_batch,
            "met_cap": before.met_cap or after.met_cap,
            "out_of_memory": before.out_of_memory or after.out_of_memory,
            "outside": tuple(sorted({*before.outside, *after.outside})),
        }
    )
