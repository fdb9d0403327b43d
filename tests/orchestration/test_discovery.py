"""A family of one's own: files in tasks/, flows/ and configs/ make it run, deployed and part of a night."""

import subprocess
import sys

import pytest

from overnight import services
from overnight.errors import ServiceError
from overnight.paths import INSTALLED
from overnight.services.settings import POOL
from tests.support.checkouts import living_in, make_checkout, prefect, until

pytestmark = pytest.mark.services
FILES = {
    "tasks/toy/count.py": '''
from overnight import Artifact, Params, Run, step


class CountParams(Params):
    upto: int = 3


@step
def count_up(run: Run, params: CountParams) -> Artifact:
    """Count."""
    run.metric("test/last", params.upto)
    return run.save("count", meta={"upto": params.upto})
''',
    "flows/toy.py": '''
from overnight import Artifact, Experiment, pipeline
from tasks.toy.count import CountParams, count_up


class Toy(Experiment):
    count: CountParams = CountParams()


@pipeline
def toy(cfg: Toy) -> Artifact:
    """Count up to a number."""
    return count_up(cfg.count)
''',
    "configs/toy.yaml": "flow: toy\ncount: {upto: 4}\n",
    "configs/night.yaml": "flow: nightly\nexperiments:\n"
    "  - toy.yaml\n  - {config: toy.yaml, name: more, count: {upto: 9}}\n",
}


def deployments():
    return {one["name"]: one for one in prefect("/deployments/filter", {})}


def deploy_as_before(name, entrypoint):
    """A deployment as another version, or another program, has left it in the database."""
    flow = prefect("/flows/", {"name": name})["id"]
    values = {"name": name, "flow_id": flow, "entrypoint": entrypoint, "work_pool_name": POOL, "path": "."}
    prefect("/deployments/", {**values, "pull_steps": []})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    with living_in(root):
        services.up()
        deploy_as_before("vision", "overnight.deployments.vision")
        deploy_as_before("gone", "overnight.deployments.gone")
        deploy_as_before("foreign", "elsewhere/flow.py:flow")
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (root / "prefect.yaml").write_text(
            'schedules: {toy: {cron: "0 5 * * *", timezone: Asia/Tokyo}, nightly: {cron: "30 3 * * *"}}\n'
        )
        services.up()
        yield root


def test_the_next_up_registers_what_changed(home):
    found = deployments()
    flows = {path.stem for path in (INSTALLED / "flows").glob("[!_]*.py")}
    assert "vision" in flows
    assert set(found) == flows | {"foreign", "toy"}
    assert found["vision"]["entrypoint"] == "overnight.orchestration.prefect.deployment_vision"
    assert found["toy"]["description"] == "Count up to a number."
    (schedule,) = found["toy"]["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 5 * * *", "Asia/Tokyo")


def test_it_is_run_by_hand(home):
    command = [sys.executable, "-m", "overnight.cli.main", "run", "toy", "count.upto=5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 steps done" in done.stdout
    assert "last 5" in done.stdout


@pytest.mark.parametrize(
    ("name", "parameters", "message", "states"),
    [
        ("toy", {"overrides": ["count.upto=5"]}, "1 of 1 steps done (1 unchanged)", {"Unchanged"}),
        ("nightly", {"config": "configs/night.yaml"}, "2 of 2 steps done", {"Completed"}),
    ],
)
def test_its_deployment_and_a_night_run_it(home, name, parameters, message, states):
    made = prefect(f"/deployments/{deployments()[name]['id']}/create_flow_run", {"parameters": parameters})
    wanted = {"flow_runs": {"id": {"any_": [made["id"]]}}}

    def state():
        (run,) = prefect("/flow_runs/filter", wanted)
        return (
            run["state"] if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None
        )

    ended = until(state, f"the end of {name}")
    assert (ended["type"], ended["message"]) == ("COMPLETED", message)
    steps = prefect("/task_runs/filter", wanted)
    assert {step["state_name"] for step in steps} == states


@pytest.mark.slow
def test_a_broken_flow_is_named_with_its_line_and_stops_no_other(home):
    services.up()
    flow = home / "flows" / "toy.py"
    (home / "flows" / "other.py").write_text(FILES["flows/toy.py"].replace("toy(", "other("))
    flow.write_text(FILES["flows/toy.py"] + "\ndef (:\n")
    line = flow.read_text().splitlines().index("def (:") + 1

    def deployments_row():
        (row,) = [row for row in services.status() if row["service"] == "deployments"]
        return row

    def broken_up():
        with pytest.raises(ServiceError) as caught:
            services.up()
        assert f"flows/toy.py:{line}: SyntaxError: invalid syntax; the other flows" in str(caught.value)
        assert deployments_row()["note"] == str(caught.value)

    broken_up()  # while the services run
    assert {"toy", "other"} <= set(deployments())
    services.down()
    broken_up()
    assert {row["state"] for row in services.status()} == {"ready"}
    assert "toy" in deployments()
    flow.write_text(FILES["flows/toy.py"])
    services.up()
    assert deployments_row()["note"] == ""
    (home / "prefect.yaml").write_text("schedules: [")
    with pytest.raises(ServiceError, match=r"prefect\.yaml"):
        services.up()
    assert deployments_row()["state"] == "failed"
    (home / "prefect.yaml").write_text("schedules: {}\n")
    (home / "flows" / "other.py").unlink()
    services.up()  # the first one after the mistake is mended
    assert "other" not in deployments()


def test_a_flow_that_is_removed_loses_its_deployment(home):
    (home / "flows" / "toy.py").unlink()
    (home / "prefect.yaml").write_text("schedules: {}\n")
    services.up()
    assert "toy" not in deployments()
    assert deployments()["nightly"]["schedules"] == []
