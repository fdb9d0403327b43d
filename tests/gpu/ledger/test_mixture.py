"""The mix of steps that tests/gpu plays on a real card, played small on the virtual one: every step runs,
together and one by one.
"""

from overnight.gpu.card import virtual
from tests.support.steps_mixed import MIX, play

ROUNDS = {"convolve": 2, "pass_messages": 2, "act": 1}


def test_the_mix_runs_together_and_each_step_stays_inside_its_lease(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path / "cards"))
    monkeypatch.setenv("OVERNIGHT_CPU", "1")
    seconds, results = play(tmp_path / "together", virtual(count=True), ROUNDS, together=True)
    assert [(r.code, r.error) for r in results] == [(0, "")] * len(MIX)
    assert [r.lease_mib for r in results] == [mib for _, mib in MIX]
    assert all(0 < r.peak_mib < r.cap_mib for r in results)
    assert seconds > 0
