"""Versions of models in MLflow's registry, and which of them is the champion: whatever is written twice, or by hand."""

import json

import pytest

from overnight.errors import BadInput
from overnight.tracking.client import Tracker
from overnight.tracking.registry import (
    ACCOUNT,
    ALIAS,
    EVIDENCE,
    PROMOTED,
    WITHDRAWN,
    Registry,
    model_name,
    name_problem,
)
from tests.support.registered import Models


@pytest.fixture
def registry(checkout, mlflow_uri):
    return Registry(Tracker(mlflow_uri, "made"))


@pytest.fixture
def made(registry, request):
    """The models of a test, under a name of its own."""
    return Models(registry, request.node.name)


def test_each_model_becomes_a_version_and_the_same_one_only_once(made):
    assert made.register("a") == 1
    assert made.register("b") == 2
    assert made.register("a") == 1
    found = made.find()
    assert [(one.number, one.digest) for one in found.versions] == [(2, "b"), (1, "a")]
    assert found.versions[0].tags["overnight.licence.digits"] == "CC0"
    assert found.champion is None


def test_a_name_of_another_flow_is_refused_with_what_to_do(made):
    made.register("a")
    run_id = made.log("b")
    event = {"name": made.name, "digest": "b", "flow": "detect", "tags": {}}
    with pytest.raises(ValueError, match="one of the flow vision, this experiment is one of detect; give"):
        made.registry.register(run_id, event)
    made.registry.client.create_registered_model("by hand")
    assert "did not make" in name_problem(made.registry.find("by hand"), "vision")


def test_a_promotion_has_its_evidence_and_may_be_written_again(made):
    for digest in "ab":
        made.register(digest)
    for _ in range(2):
        made.judge("a", former=0, looks=0)
        made.judge("b", former=1, looks=1)
    found = made.find()
    assert found.champion.number == 2
    assert found.champion.facts(EVIDENCE)["why"] == "b is better"
    assert found.champion.facts(PROMOTED)["former"] == 1
    assert found.account == {"began": 100.0, "looks": 1}


def test_an_old_event_changes_nothing_that_happened_since(made):
    for digest in "abc":
        made.register(digest)
    made.judge("a", former=0, looks=0)
    made.judge("b", former=1, looks=1)
    made.judge("c", former=2, looks=2)
    made.judge("b", former=1, looks=1)
    assert made.champion() == 3
    assert made.find().account["looks"] == 2
    made.registry.rollback(made.name, "it is slow")
    made.judge("c", former=2, looks=2)
    assert made.champion() == 2


def test_the_loser_keeps_its_evidence_and_the_champion_its_alias(made):
    for digest in "ab":
        made.register(digest)
    made.judge("a", former=0, looks=0)
    made.judge("b", former=1, looks=1, promotes=False)
    found = made.find()
    assert found.champion.number == 1
    assert found.of_digest("b").facts(EVIDENCE)
    assert PROMOTED not in found.of_digest("b").tags


def test_a_person_overrides_the_gate_and_goes_back(made):
    for digest in "abc":
        made.register(digest)
    made.judge("a", former=0, looks=0)
    assert made.registry.promote(made.name, 3, "the boss wants it") == 1
    facts = made.find().champion.facts(PROMOTED)
    assert facts["why"] == "the boss wants it"
    assert facts["by"]
    assert made.registry.promote(made.name, 2) == 3
    assert made.registry.rollback(made.name, "no") == (2, 3)
    assert made.find().of_digest("b").facts(WITHDRAWN)["why"] == "no"
    assert made.registry.rollback(made.name) == (3, 1)
    with pytest.raises(BadInput, match="never had another champion"):
        made.registry.rollback(made.name)
    made.registry.promote(made.name, 2)
    assert WITHDRAWN not in made.find().champion.tags


def test_what_is_not_there_is_named_with_what_is(made):
    made.register("a")
    with pytest.raises(BadInput, match="no such model; did you mean"):
        made.registry.promote(made.name[:-1] + "q", 1)
    with pytest.raises(BadInput, match="no such version; there are 1"):
        made.registry.promote(made.name, 4)
    made.registry.promote(made.name, 1)
    with pytest.raises(BadInput, match="is the champion already"):
        made.registry.promote(made.name, 1)


def test_an_alias_that_was_removed_by_hand_is_put_back(made):
    for digest in "ab":
        made.register(digest)
    made.judge("a", former=0, looks=0)
    made.judge("b", former=1, looks=1)
    made.registry.client.delete_registered_model_alias(made.name, ALIAS)
    assert made.find().champion is None
    assert made.find().last_champion().number == 2
    assert made.registry.rollback(made.name) == (2, 2)
    assert made.champion() == 2


def test_a_champion_that_was_deleted_leaves_none(made):
    for digest in "ab":
        made.register(digest)
    made.judge("a", former=0, looks=0)
    made.judge("b", former=1, looks=1)
    made.registry.client.delete_model_version(made.name, "1")
    with pytest.raises(BadInput, match="version 1, the champion before, was deleted"):
        made.registry.rollback(made.name)
    assert made.champion() == 2


def test_tags_that_a_person_wrote_over_are_read_as_empty(made):
    made.register("a")
    made.registry.client.set_registered_model_tag(made.name, ACCOUNT, "nonsense")
    made.registry.client.set_model_version_tag(made.name, "1", EVIDENCE, "[1]")
    found = made.find()
    assert (found.account, found.versions[0].facts(EVIDENCE)) == ({}, {})
    made.judge("a", former=0, looks=0)
    assert json.loads(made.find().tags[ACCOUNT])["looks"] == 0


def test_names_are_those_that_the_registry_takes(made):
    assert model_name("a/b: 50%") == "a-b- 50-"
    made.registry.client.create_registered_model(model_name('it\'s "größe" 猫/`x`'))
    assert model_name('it\'s "größe" 猫/`x`') in made.registry.names()


def test_a_model_that_waited_for_the_server_is_the_champion_only_if_there_is_no_other(made):
    made.register("a")
    made.register("b")
    for _ in range(2):
        made.judge("b", former=0, looks=0)
        made.judge("a", former=0, looks=0)
    assert made.champion() == 2
    assert EVIDENCE not in made.find().of_digest("a").tags
    made.registry.client.delete_registered_model_alias(made.name, ALIAS)
    made.judge("a", former=0, looks=0)
    assert made.champion() == 0
