"""The morning report: a reader finds each answer in the file alone, and nothing of a record breaks it."""

import time

import pytest

from bench._night_report import Reader, judge, to_do
from bench._synthetic_nights import CARD, nights
from overnight.night import record, report
from overnight.night.facts import Facts, Trend, duration
from overnight.night.record import Failure, NightRecord, StepRecord

START = 1_800_000_000.0


@pytest.fixture(scope="module")
def made():
    return nights(12, seed=3)


def night(*steps, **fields):
    values = {"experiment": "nightly", "config": "configs/nightly.yaml", "flow": "nightly", "started": START}
    return NightRecord(**{**values, "ended": START + 600, "outcome": "done", "steps": steps, **fields})


def step(label="a/train", **fields):
    return StepRecord(**{"label": label, "step": "tasks.a:train", "state": "done", **fields})


def read(found, name="n"):
    reader = Reader(report.page(name, found))
    assert reader.problems == []
    return reader.root


@pytest.mark.parametrize("number", range(12))
def test_all_questions_are_answered_from_the_page_alone(made, number, tmp_path):
    path = tmp_path / "page.html"
    found = Facts(made[number].night, [one.night for one in made[:number]])
    path.write_text(report.page(made[number].name, found))
    row = judge(made[number], path, 0.0)
    assert row.wrong == []
    assert row.bytes < 1_000_000


def test_a_wrong_page_is_noticed(made, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(report.page("n", Facts(made[0].night)))
    assert len(judge(made[1], path, 0.0).wrong) >= 5


def test_the_page_needs_no_script_and_nothing_from_elsewhere(made):
    text = report.page("n", Facts(made[-1].night, [one.night for one in made[:-1]]))
    assert "<script" not in text
    assert "src=" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_texts_of_steps_are_shown_as_they_are():
    odd = '<img src=x onerror=alert(1)> & "quotes" \u202e'
    failure = Failure(kind="bug", evidence=(odd,), fix=f"`{odd}`")
    page = read(Facts(night(step(odd, state="failed", reason=odd, failure=failure, link="javascript:x()"))))
    article = next(page.all("article"))
    assert article.attributes["data-step"] == odd
    assert (article.text_of("reason"), article.text_of("evidence")) == (odd, odd)
    assert not list(page.all("img"))
    assert not [link for link in page.all("a") if link.attributes["href"].startswith("javascript")]


def test_a_night_of_nothing_and_one_that_runs_have_a_page():
    empty = read(Facts(night()))
    assert empty.text_of("verdict") == "No steps."
    assert empty.text_of("today") == "Nothing. Everything went as it should."
    from overnight.processes import Identity

    going = night(
        step(state="running", began=START), outcome="running", ended=None, process=Identity.mine().tags()
    )
    assert read(Facts(going)).text_of("verdict") == "Still running: 1 step still to come."


def test_a_killed_night_says_when_it_was_last_seen_and_what_was_cut_off():
    killed = night(
        step("a"),
        step("b", state="running", began=START),
        step("c", state="queued"),
        outcome="running",
        ended=None,
        seen=START + 60,
    )
    page = read(Facts(killed))
    at = time.strftime("%H:%M", time.localtime(START + 60))
    assert page.text_of("verdict") == f"Killed at {at}: 1 step done, 1 stopped, 1 not run."
    assert {label: row.text_of("state") for label, row in page.rows("steps").items()} == {
        "a": "done",
        "b": "cut off",
        "c": "not run",
    }
    assert to_do(page) == ["The run was killed: overnight run nightly goes on where it was."]


def test_there_are_never_more_than_five_things_to_do():
    page = read(Facts(night(*(step(f"step-{n}", state="failed", reason="no") for n in range(9)))))
    lines = to_do(page)
    assert len(lines) == 5
    assert lines[-1] == "5 more, further down this page."


def test_a_model_that_the_gate_could_not_judge_is_something_to_do():
    kept = {
        "name": "a",
        "champion": 3,
        "promotes": False,
        "reason": "not promoted, against the champion: it is worse",
    }
    lost = {
        "name": "b",
        "champion": 0,
        "promotes": False,
        "reason": "not judged: the alias was removed; `overnight promote b@3`",
    }
    found = Facts(night(step(promotion=kept), step("b/train", promotion=lost)))
    assert found.to_do == ["b/train: its model is not judged: the alias was removed; `overnight promote b@3`"]
    page = read(found)
    assert [row.text_of("decision") for row in page.rows("champions").values()] == [
        "not promoted",
        "not promoted",
    ]
    assert page.text_of("n-promoted") == "0"


def test_a_program_that_took_more_than_it_asked_for_is_named_as_such():
    greedy = step("greedy", lease_mib=3000, peak_mib=4700, overhead_mib=300)
    modest = step("modest", lease_mib=3000, peak_mib=2700, overhead_mib=300)
    page = read(Facts(night(greedy, modest)))
    assert [one.attributes["data-step"] for one in page.all(name="over")] == ["greedy"]
    assert page.text_of("over").startswith("greedy took 4.9 GiB and had asked for 2.9 GiB.")
    bad = {label: bool(list(row.all(name="bad"))) for label, row in page.rows("memory").items()}
    assert bad == {"greedy": True, "modest": False}


def test_other_programs_are_named_where_steps_waited_for_them():
    waited = step(wait_s=1800, other_processes_peak_mib=5100)
    assert Facts(night(waited, other_programs=("ollama",))).to_do == [
        "Steps waited 30 min while ollama had up to 5.0 GiB of the card: close them at night."
    ]
    assert Facts(night(step(wait_s=5, other_processes_peak_mib=5100))).to_do == []


@pytest.mark.parametrize(
    ("score", "values", "is_bad"),
    [
        ("test/accuracy", [0.9, 0.91, 0.9, 0.905, 0.9, 0.7], True),
        ("test/accuracy", [0.9, 0.91, 0.9, 0.905, 0.9, 0.895], False),
        ("test/accuracy", [0.9, 0.91, 0.9, 0.905, 0.9, 0.99], False),
        ("test/loss", [0.5, 0.51, 0.5, 0.5, 0.5, 0.9], True),
        ("test/loss", [0.5, 0.51, 0.5, 0.5, 0.5, 0.2], False),
        ("test/accuracy", [0.9, 0.7], False),
        ("test/accuracy", [0.9, 0.91, 0.9, 0.905, 0.9, None], False),
    ],
)
def test_a_score_is_out_of_line_when_it_is_worse_than_all_before_by_more_than_their_spread(
    score, values, is_bad
):
    assert Trend("a", score, values).is_out_of_line == is_bad


def test_trends_are_those_of_the_same_score_and_thirty_nights_at_most():
    earlier = [
        night(step(scores={"test/accuracy": 0.5 + n / 100}), started=START - (40 - n) * 86400)
        for n in range(40)
    ]
    found = Facts(night(step(scores={"test/accuracy": 0.95})), earlier)
    assert len(found.nights) == 30
    assert found.trends[0].values[0] == pytest.approx(0.61)
    page = read(found)
    assert page.text_of("n-nights") == "30"
    assert page.rows("trends")["a/train"].text_of("change") == "+0.06"


def test_expected_durations_have_a_column_where_there_are_some():
    page = read(Facts(night(step(run_s=65, forecast_s=60), step("b", run_s=10))))
    assert page.rows("steps")["a/train"].text_of("expected") == "1 min"
    assert not list(read(Facts(night(step(run_s=9)))).all(name="expected"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (65, "1 min 5 s"),
        (600, "10 min"),
        (6120, "1 h 42 min"),
    ],
)
def test_durations_are_short_and_exact_enough(seconds, text):
    assert duration(seconds) == text


def test_a_report_is_built_below_the_state_folder_with_its_record(checkout):
    folder = record.paths.steps() / "20261130-033000-nightly-run-a"
    folder.mkdir(parents=True)
    night(step()).write(folder / record.FILE)
    name, found = record.find()
    path = report.build(name, report.facts_of(found), folder)
    assert path == checkout / ".overnight" / "reports" / f"{name}.html"
    assert (folder / report.FILE).read_text() == path.read_text()
    assert record.read(path.with_suffix(".json")) == found


def test_the_short_forms_say_the_same(tmp_path):
    failure = Failure(kind="bad data", fix="correct `a_b.png`")
    found = Facts(
        night(step(), step("b_c", state="failed", reason="no *picture*", failure=failure), card=CARD)
    )
    headline = report.headline(found)
    assert headline.title == "nightly: 1 step done, 1 failed."
    assert headline.lines[1:] == ["b_c failed (bad data): correct a_b.png"]
    text = report.markdown(found, tmp_path / "page.html")
    assert text.startswith("**1 step done, 1 failed.**")
    assert "- **b\\_c**: no \\*picture\\*" in text
