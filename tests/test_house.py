"""The rules of the house (tests/house.py), and that each of them can be broken."""

import pytest

from tests import house

FILES = house.code("overnight", "tasks", "flows", "bench")


def test_a_package_imports_only_those_below_it():
    assert house.upward_imports() == []


def test_no_modules_import_one_another_in_a_circle():
    assert house.circles() == []


def test_the_root_of_the_engine_is_no_drawer():
    assert len(house.root_modules()) <= house.ROOT_MODULES, house.root_modules()


def test_no_small_module_exists_for_one_importer():
    assert house.small_satellites() == []


@pytest.mark.parametrize("rule", [house.wide_lines, house.dense_expressions, house.banned_names])
def test_every_file_keeps_the_rules_of_form(rule):
    assert [line for path in FILES for line in rule(path)] == []


def test_tests_mirror_the_tree():
    assert house.tests_without_a_place() == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (house.wide_lines, f"x = '{'a' * 120}'\n"),
        (house.dense_expressions, "x = 1 if a else 2 if b else 3\n"),
        (house.dense_expressions, "x = [y for a in b if (y := a)]\n"),
        (house.banned_names, "def knot():\n    pass\n"),
        (house.banned_names, "x.told = 1\n"),
        (house.banned_names, "# whoever comes first\n"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, monkeypatch, rule, text):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    path = tmp_path / "made.py"
    path.write_text(text)
    assert len(rule(path)) == 1
    path.write_text("x = 1\n")
    assert rule(path) == []


def test_an_upward_import_and_a_circle_are_found_also_when_lazy(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    (tmp_path / "overnight" / "gpu").mkdir(parents=True)
    (tmp_path / "overnight" / "gpu" / "a.py").write_text(
        "def f():\n    from overnight.gpu.b import g\n    return g\n"
    )
    (tmp_path / "overnight" / "gpu" / "b.py").write_text(
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from overnight.gpu import a\n    from overnight.step import Step\n"
    )
    (tmp_path / "overnight" / "step.py").write_text("class Step: ...\n")
    assert house.upward_imports() == ["overnight/gpu/b.py:5: gpu imports overnight.step.Step"]
    assert house.circles() == [["overnight.gpu.a", "overnight.gpu.b"]]
