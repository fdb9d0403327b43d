"""Writers that are ended, or refused, at some of their system calls; all of them are cases of tests.chaos."""

import pytest

from tests.chaos.calls import FAULTS, WRITERS, refusal, sweep

REFUSAL = refusal()


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "writer", [pytest.param(name, marks=pytest.mark.slow if name == "promotion" else ()) for name in WRITERS]
)
def test_a_writer_leaves_nothing_torn_and_nothing_held(writer, fault):
    swept = sweep(writer, fault, every=4)
    assert swept.calls > 0
    assert swept.damaged == 0
