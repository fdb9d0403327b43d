"""What is registered at Prefect's server: a deployment for each file of flows/, with the schedules of prefect.yaml."""

from pathlib import Path

import pytest

from overnight.errors import ServiceError
from overnight.orchestration import prefect
from overnight.services import register
from overnight.services.register import local_timezone, read_schedules
from overnight.services.settings import ENTRYPOINT
from overnight.step import default_config, flow_names
from tests.support.own_files import own_files

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ["etl", "nightly"]


def schedules(folder, text):
    (folder / "prefect.yaml").write_text(text)
    return read_schedules(folder / "prefect.yaml", NAMES)


def test_every_flow_has_its_deployment():
    files = {path.stem for path in own_files("flows/*.py")} - {"__init__"}
    found = {one.name: one for one in register.deployments()}
    assert files <= set(found) == set(flow_names())
    assert all(found[name].about for name in files)
    assert found["nightly"].cron
    assert found["nightly"].timezone == local_timezone()


@pytest.mark.parametrize("name", sorted(path.stem for path in own_files("flows/[a-z]*.py")))
def test_an_entrypoint_leads_to_the_flow_with_the_registered_parameters(name):
    flow = getattr(prefect, f"{ENTRYPOINT}{name}".rpartition(".")[2])
    assert flow.name == name
    assert flow.description
    assert flow.parameters.model_dump_for_openapi() == register.parameters_of(name)
    properties = flow.parameters.properties
    assert {key: value["default"] for key, value in properties.items()} == {
        "config": default_config(name),
        "overrides": [],
    }
    given = {"config": "a.yaml", "overrides": ["a=1"]}
    assert flow.validate_parameters(given) == given


def test_an_entrypoint_of_a_flow_that_is_gone_is_no_attribute():
    with pytest.raises(AttributeError, match="deployment_gone"):
        prefect.deployment_gone  # noqa: B018


def test_a_timezone_may_be_given(tmp_path):
    found = schedules(tmp_path, 'schedules: {nightly: {cron: "0 1 * * *", timezone: Europe/Berlin}}')
    assert (found["nightly"].cron, found["nightly"].timezone) == ("0 1 * * *", "Europe/Berlin")


def test_what_becomes_of_missed_runs_is_said_beside_the_schedule(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    assert register.policy("nightly") == "latest"
    (tmp_path / "prefect.yaml").write_text("schedules: {nightly: {cron: '0 1 * * *', missed: skip}}")
    assert (register.policy("nightly"), register.policy("etl")) == ("skip", "latest")
    (tmp_path / "prefect.yaml").write_text("schedules: [")
    assert register.policy("nightly") == "latest"


@pytest.mark.parametrize("text", ["", "schedules: {}"])
def test_a_file_without_schedules_has_none(tmp_path, text):
    assert schedules(tmp_path, text) == read_schedules(tmp_path / "missing.yaml", NAMES) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: [", "not readable"),
        ("- a", "should be a valid dictionary"),
        ("name: x", "name: unknown key"),
        ("deployments: [{name: a}]", "deployments are made of flows/; write the schedules alone"),
        ("schedules: {nigthly: {cron: '0 1 * * *'}}", "no flow is called nigthly; there are etl, nightly"),
        (
            "schedules: {nightly: {corn: '0 1 * * *'}}",
            "schedules.nightly.cron: is required and missing; schedules",
        ),
        (
            "schedules: {etl: {cron: '0 1 * * *', timezone: Europe/Berlni}}",
            "unknown timezone 'Europe/Berlni'",
        ),
        (
            "schedules: {etl: {cron: '0 1 * * *', missed: never}}",
            "schedules.etl.missed: Input should be 'latest', 'all' or 'skip'",
        ),
    ],
)
def test_schedules_that_are_wrong_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ServiceError) as caught:
        schedules(tmp_path, text)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("prefect.yaml: ")
    assert message in line


def test_a_cron_line_that_prefect_refuses_is_named():
    wrong = register.Deployment("nightly", "about", "c.yaml", "61 3 * * *", "UTC")
    with pytest.raises(ServiceError, match=r"'61 3 \* \* \*' is no cron line"):
        register.cron_schedules([register.Deployment("etl", "", "c.yaml", "", "UTC"), wrong])
    assert list(register.cron_schedules(register.deployments())) == ["nightly"]


def test_the_timezone_of_the_machine_is_one_that_prefect_knows(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_timezone() == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "nonsense")
    assert local_timezone() != "nonsense"
