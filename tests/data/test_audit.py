"""A table is held against its entry's rules and the last good one."""

import pytest

from overnight.data.audit import audit, audited, baseline_file
from overnight.data.content import Tables
from overnight.data.dataset import Dataset
from overnight.errors import DataError

USUAL = "id,price\n" + "".join(f"{i},{i % 7}.5\n" for i in range(300))
OTHER = USUAL.replace(".5\n", "500\n")


def made(folder, text, **values):
    (folder / "sales.csv").write_text(text)
    values = {"kind": "table", "reader": "csv", "options": {"tables": {"sales": "sales.csv"}}, **values}
    entry = Dataset.model_validate({"name": "made", **values})
    return entry, entry.load_as(Tables)


def test_a_set_without_rules_is_only_read(folder):
    assert audited(*made(folder, USUAL)) is None
    assert not baseline_file("made").exists()


def test_a_change_is_reported_once_and_then_usual(folder):
    assert audited(*made(folder, USUAL, drift="warn")).changes == []
    assert any("price" in line for line in audited(*made(folder, OTHER, drift="warn")).changes)
    assert audited(*made(folder, OTHER, drift="warn")).changes == []


def test_a_change_stops_until_it_is_accepted(folder):
    audited(*made(folder, USUAL, drift="stop"))
    for _ in range(2):
        with pytest.raises(DataError, match=r"'made' has changed: sales: price: .* data check made --accept"):
            audited(*made(folder, OTHER, drift="stop"))
    audit(*made(folder, OTHER)).accept()
    assert audited(*made(folder, OTHER, drift="stop")).changes == []


def test_a_damaged_baseline_is_like_none(folder):
    audited(*made(folder, USUAL, drift="stop"))
    baseline_file("made").write_text("{")
    assert not audited(*made(folder, OTHER, drift="stop")).since


def test_a_broken_rule_refuses_the_set(folder):
    with pytest.raises(DataError, match="column 'price': values above 5"):
        audited(*made(folder, USUAL, rules={"sales": {"columns": {"price": {"max": 5}}}}))


def test_a_value_of_another_type_is_named_with_its_line(folder):
    entry, content = made(
        folder, USUAL + "7,x\n", options={"tables": {"sales": "sales.csv"}, "types": {"price": "float"}}
    )
    with pytest.raises(DataError, match="line 302: column 'price'"):
        audit(entry, content)


def test_the_page_escapes_what_the_data_hold(folder):
    found = audit(*made(folder, USUAL.replace("price", "<b>")))
    assert "&lt;b&gt;" in found.page()
    assert "<b>" not in found.page()


def test_rules_are_of_tables():
    with pytest.raises(ValueError, match="rules and drift are of tables"):
        Dataset.model_validate({"name": "made", "kind": "images", "reader": "image_folder", "drift": "warn"})
