"""Nights that were slept through, with Prefect's own server, scheduler and worker: what runs at the return."""

import pytest

from overnight import paths, services
from tests.support.checkouts import backdate, living_in, make_checkout, prefect, until

ENDED = ("COMPLETED", "CANCELLED", "FAILED", "CRASHED")
CONFIG = "flow: nightly\nexperiments: [{command: 'true', vram: 0, name: mine}]\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    (root / "configs" / "nightly.yaml").write_text(CONFIG)
    with living_in(root):
        services.up()
        yield root


def scheduled():
    return prefect("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})


@pytest.mark.slow
@pytest.mark.services
def test_after_three_nights_that_were_slept_through_one_runs(home):
    runs = until(lambda: found if len(found := scheduled()) >= 3 else None, "the scheduler")[:3]
    backdate(runs, (2, 1, 0))
    wanted = {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}}

    def ended():
        found = prefect("/flow_runs/filter", wanted)
        return found if all(run["state_type"] in ENDED for run in found) else None

    found = sorted(until(ended, "the runs"), key=lambda run: run["expected_start_time"])
    assert [run["state_name"] for run in found] == ["Skipped", "Skipped", "Completed"], found
    assert "stands for all that were missed" in found[0]["state"]["message"]
    assert len(list(paths.steps().glob("*-mine-run_program-*"))) == 1
