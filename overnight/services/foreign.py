"""Servers of the user's own: what is wrong with their addresses, and with the variables on the way there."""

import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from overnight.errors import one_line
from overnight.processes import PROXIES
from overnight.services.settings import SILENCE

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def variables_problem() -> str:
    """A proxy or certificate variable with which no client works; empty when there is none."""
    import httpx

    given = {name: value for name, value in os.environ.items() if name.lower() in PROXIES and value}
    for name, value in given.items():
        if name.lower().endswith(("_bundle", "_file", "_dir", "_path")) and not Path(value).exists():
            return f"{name}={value}: is not there"
        try:
            if name.lower().endswith("_proxy"):
                with _only(dict.fromkeys(given), {name: value}):
                    httpx.Client().close()
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            return f"{name}={value}: {one_line(error)}"
    return ""


def prefect_problem(address: str) -> str:
    """Why this is no Prefect API that answers; empty when it is."""
    variable = f"PREFECT_API_URL={address}"
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        return f"{variable}: expected http://HOST:PORT/api"
    request = urllib.request.Request(f"{address}/health")  # noqa: S310
    if "PREFECT_API_KEY" in os.environ:
        request.add_header("Authorization", f"Bearer {os.environ['PREFECT_API_KEY']}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
            is_prefect = json.load(response) is True
    except OSError as error:
        return f"{variable}: gives no answer: {one_line(error)}"
    except ValueError:
        is_prefect = False
    return "" if is_prefect else f"{variable}: is no Prefect API, whose address ends with /api"


def mlflow_problem(address: str) -> str:
    """Why MLflow cannot log there; empty when it can."""
    variable = f"MLFLOW_TRACKING_URI={address}"
    parts = urlsplit(address)
    is_server = parts.scheme in ("http", "https") and parts.hostname
    if not is_server and parts.scheme.partition("+")[0] not in DATABASES:
        return f"{variable}: expected http://HOST:PORT, or a database as sqlite:////folder/mlflow.db"
    with _only({}, {**QUICK, **SILENCE}):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            MlflowClient(tracking_uri=address).search_experiments(max_results=1)
        except (MlflowException, ImportError, OSError, ValueError) as error:
            return f"{variable}: gives no answer: {one_line(error)}"
    return ""


@contextmanager
def _only(without: Mapping[str, object], given: Mapping[str, str]) -> Iterator[None]:
    """In the block the environment has *given*, and nothing of *without*."""
    before = dict(os.environ)
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
