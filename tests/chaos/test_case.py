"""The runner of the chaos cases: bars, resuming, cases that break off or never end."""

import time
from types import SimpleNamespace

import pytest

from tests.chaos.case import Case, finished, judge, meets, modules, play_all, table


def played(tmp_path, *cases, **more):
    closed = []
    module = SimpleNamespace(cases=lambda: list(cases), close=lambda: closed.append(True))
    lines, outcomes = play_all([module], 3, path=tmp_path / "results.jsonl", **more)
    assert closed == [True]
    return lines, outcomes


@pytest.mark.parametrize(
    ("value", "bar", "met"),
    [(2, "<= 2", True), (2.1, "<= 2", False), (0, "== 0", True), (float("nan"), "<= 2", False)],
)
def test_a_bar_is_met_or_missed(value, bar, met):
    assert meets(value, bar) is met


def test_every_measurement_is_a_line_and_one_that_is_missing_has_missed(tmp_path):
    case = Case(
        "a", "what", lambda seed: {"seed": seed, "p99_s": 3.0}, {"p99_s": "<= 2", "stuck_mib": "== 0"}
    )
    lines, _ = played(tmp_path, case)
    assert [(line.measure, line.value, line.met) for line in lines] == [
        ("p99_s", "3", False),
        ("stuck_mib", "not measured", False),
        ("seed", "3", None),
    ]
    assert "NO" in table(lines)


def test_what_is_finished_is_not_played_again_and_what_broke_off_is(tmp_path):
    runs = []

    def run(seed):
        runs.append(seed)
        if len(runs) == 1:
            raise ValueError("broke")
        return {"x": 1}

    case = Case("a", "what", run, {"x": "== 1"})
    lines, _ = played(tmp_path, case)
    assert [(line.value, line.met) for line in lines] == [("ValueError: broke", False)]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"name": "torn')
    for _ in range(2):
        lines, _ = played(tmp_path, case, resume=True)
        assert [(line.value, line.met) for line in lines] == [("1", True)]
    assert runs == [3, 3]
    played(tmp_path, case)
    assert len(runs) == 3


def test_a_case_that_never_ends_is_ended(tmp_path):
    endless = Case("a", "what", lambda _seed: time.sleep(60), {}, limit_s=1)
    lines, _ = played(tmp_path, endless)
    assert "not done after 1 s" in lines[0].value
    assert finished(tmp_path / "results.jsonl") == {}


def test_only_those_that_are_named(tmp_path):
    cases = [
        Case(name, "what", lambda _seed: {"x": 1}, {"x": "== 1"}) for name in ("kill step", "kill worker")
    ]
    lines, _ = played(tmp_path, *cases, wanted=["worker"])
    assert [line.case for line in lines] == ["kill worker"]


def test_every_case_of_this_project_has_a_bar_that_can_be_read():
    cases = [case for module in modules() for case in module.cases()]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.bars
        assert all(
            line.met is False
            for line in judge(
                case, SimpleNamespace(broke="", measured=dict.fromkeys(case.bars, float("nan")))
            )
        )
