"""Servers of the user, and the shell's proxies and certificates on the way to them: what is wrong is said before anything starts."""

import os

import pytest

from overnight import locks, services
from overnight.errors import ServiceError
from overnight.processes import with_proxies
from overnight.services.settings import local_environment, users_folder
from tests.support.checkouts import processes


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MLFLOW_TRACKING_URI": "databricks"}, "MLFLOW_TRACKING_URI=databricks: expected http"),
        ({"MLFLOW_TRACKING_URI": "databricks://mine"}, "MLFLOW_TRACKING_URI=databricks://mine: expected"),
        ({"MLFLOW_TRACKING_URI": "./mlruns"}, "MLFLOW_TRACKING_URI=./mlruns: expected"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "MLFLOW_TRACKING_URI=http://127.0.0.1:1: gives no"),
        ({"PREFECT_API_URL": "127.0.0.1:4200"}, "PREFECT_API_URL=127.0.0.1:4200: expected http"),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:1/api", "ALL_PROXY": "socks5://127.0.0.1:1"},
            "ALL_PROXY=socks5://127.0.0.1:1: ",
        ),
        ({"PREFECT_API_URL": "http://127.0.0.1:1/api", "no_proxy": "[::1]"}, "no_proxy=[::1]: "),
        (
            {"MLFLOW_TRACKING_URI": "https://127.0.0.1:1", "REQUESTS_CA_BUNDLE": "/not/there"},
            "REQUESTS_CA_BUNDLE=/not/there: is not there",
        ),
    ],
)
def test_what_is_wrong_with_a_server_of_the_user_is_said_before_anything_starts(
    tmp_path, monkeypatch, variables, said
):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for start in (services.up, services.ensure("a run").__enter__):
        with pytest.raises(ServiceError) as caught:
            start()
        assert said in str(caught.value)
    assert not processes(tmp_path)
    assert not locks.users(users_folder())


def test_our_own_servers_are_asked_without_proxies_and_certificates_which_steps_get(tmp_path, monkeypatch):
    shell = {
        "ALL_PROXY": "socks5://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
        "no_proxy": "[::1],fd00::/8",
        "REQUESTS_CA_BUNDLE": "/not/there",
        "SSL_CERT_FILE": "/not/there",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": "/not/there",
        "HOME": "/home/me",
    }
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    ours = local_environment(os.environ)
    assert {name: ours[name] for name in shell if name in ours} == {
        "no_proxy": "127.0.0.1,localhost",
        "HOME": "/home/me",
    }
    monkeypatch.setattr(os, "environ", ours)
    assert local_environment(ours) == ours  # as a flow inherits it from the worker
    assert shell.items() <= with_proxies(ours).items()
