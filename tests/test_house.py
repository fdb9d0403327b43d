"""The rules of the house (tests/house.py), and that each of them can be broken."""

import pytest

from tests import house

FILES = house.code("overnight", "tasks", "flows", "bench")


def test_a_package_imports_only_those_below_it():
    assert house.upward_imports() == []


def test_no_modules_import_one_another_in_a_circle():
    assert house.circles() == []


def test_the_root_of_the_engine_is_no_drawer():
    assert house.full_root() == []
    assert house.without_a_layer() == []


def test_no_small_module_exists_for_one_importer():
    assert house.small_satellites() == []


@pytest.mark.parametrize(
    "rule",
    [house.wide_lines, house.dense_expressions, house.banned_names, house.long_file, house.misdirected],
)
def test_every_file_keeps_the_rules_of_form(rule):
    assert [line for path in FILES for line in rule(path)] == []


def test_test_files_stay_short():
    assert [line for path in house.code("tests") for line in house.long_file(path)] == []


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
        (house.long_file, "x = 1\n" * 401),
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


def test_an_import_from_the_face_is_upward_and_a_module_needs_a_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    root = tmp_path / "overnight"
    (root / "gpu").mkdir(parents=True)
    (root / "__init__.py").write_text("from overnight.step import Step\n")
    (root / "gpu" / "a.py").write_text("from overnight import paths\nfrom overnight import Run\n")
    (root / "gpu" / "b.py").write_text("import overnight\n")
    assert house.upward_imports() == [
        "overnight/gpu/a.py:2: gpu imports overnight.Run",
        "overnight/gpu/b.py:1: gpu imports overnight",
    ]
    assert house.without_a_layer() == []
    assert house.full_root() == []
    for number in range(house.ROOT_MODULES):
        (root / f"new_{number}.py").write_text("x = 1\n")
    assert house.full_root() == ["overnight/: 14 modules, at most 13"]
    assert house.without_a_layer()[:1] == ["overnight/new_0: not in LAYERS"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("overnight/a.py", "def f():\n    from tasks import cnn\n"),
        ("tasks/a.py", "from tasks.b import x\n"),
        ("tasks/a.py", "from . import b\n"),
        ("tasks/a.py", "import mlflow.client\n"),
        ("tasks/y/head.py", "from ..b import x\n"),
        ("tasks/shared/a.py", "from tasks.vision.cnn import x\n"),
        ("tasks/graphs/nodes.py", "def f():\n    from tasks.vision import cnn\n"),
        ("flows/a.py", "import torch\n"),
    ],
)
def test_a_wrong_import_is_seen(name, text):
    assert len(house.wrong_directions(name, text)) == 1
    right = "import json, torch\nfrom tasks.y.head import x\nfrom .head import z\nfrom overnight import Run\n"
    assert house.wrong_directions("tasks/y/__init__.py", right) == []
    assert house.wrong_directions("tasks/y/a.py", "from tasks.shared.predictors import load_model\n") == []
