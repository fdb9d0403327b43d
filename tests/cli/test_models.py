"""`overnight models | promote | rollback` as a person meets them."""

import pytest

from overnight.cli.main import main
from overnight.cli.models import _rows
from overnight.tracking.client import Tracker
from overnight.tracking.registry import ALIAS, Registry
from tests.support.registered import Models


@pytest.fixture
def made(checkout, mlflow_uri, request):
    found = Models(Registry(Tracker(mlflow_uri, "made")), request.node.name)
    for digest in "abc":
        found.register(digest)
    found.judge("a", former=0, looks=0)
    found.judge("b", former=1, looks=1, promotes=False)
    return found


@pytest.mark.parametrize("given", ["vision", "vision@", "@3", "vision@new"])
def test_a_version_is_written_as_name_and_number(given, capsys):
    assert main(["promote", given]) == 2
    assert f"{given}: write it as NAME@VERSION, e.g. vision@3" in capsys.readouterr().err


def test_the_list_has_the_champion_and_with_a_name_every_version(made):
    (row,) = _rows(made.find(), every=False)
    assert (row["version"], row["is"], row["by"], row["note"]) == (1, "champion", "the gate", "a is better")
    rows = list(_rows(made.find(), every=True))
    assert [(row["version"], row["is"], row["note"]) for row in rows] == [
        (3, "", "not judged"),
        (2, "", "b is better"),
        (1, "champion", "a is better"),
    ]


def test_who_went_back_and_why_is_shown(made):
    made.registry.promote(made.name, 3, "the new camera")
    rows = {row["version"]: row for row in _rows(made.find(), every=True)}
    assert rows[3]["note"] == "the new camera"
    made.registry.rollback(made.name, "it was dark")
    rows = {row["version"]: row for row in _rows(made.find(), every=True)}
    assert (rows[3]["is"], rows[3]["note"], rows[1]["is"]) == ("withdrawn", "it was dark", "champion")


def test_an_alias_that_was_removed_is_said(made):
    made.registry.client.delete_registered_model_alias(made.name, ALIAS)
    (row,) = _rows(made.find(), every=False)
    assert row["note"] == "its alias champion was removed; version 1 had it"
