"""Chats as people have them: the form is found by its keys, and every line that is left out is counted."""

import json

import pytest

from overnight.data.content import CleaningCounts
from overnight.errors import ConfigError, DataError

U, A, S = "user", "assistant", "system"
FORMS = {
    "messages": {
        "messages": [{"role": S, "content": "s"}, {"role": U, "content": "q"}, {"role": A, "content": "a"}]
    },
    "conversations": {"conversations": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "alpaca with input": {"instruction": "q", "input": "more", "output": "a"},
    "prompt": {"prompt": "q", "completion": "a"},
    "question": {"question": "q", "answer": "a", "id": 7},
    "prompt of messages": {
        "prompt": [{"role": U, "content": "q"}],
        "completion": [{"role": A, "content": "a"}],
    },
    "text": {"text": "q and a"},
}
FOUND = {
    "messages": ((S, "s"), (U, "q"), (A, "a")),
    "alpaca with input": ((U, "q\n\nmore"), (A, "a")),
    "text": (("text", "q and a"),),
}
GOOD = {"prompt": "a question", "completion": "an answer"}


@pytest.fixture
def chats(load, folder):
    def read(*rows: object, name: str = "train.jsonl", **options: object):
        lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (folder / name).write_text(lines)
        return load("chats", {"splits": {"train": name}, **options})

    return read


@pytest.mark.parametrize("form", FORMS)
def test_the_form_by_its_keys(chats, form):
    found = chats(FORMS[form])
    assert found.splits["train"] == [FOUND.get(form, ((U, "q"), (A, "a")))]
    assert not found.cleaned


def test_a_list_is_read_as_lines_are(chats):
    assert chats(json.dumps([GOOD] * 3), name="train.json").splits == chats(GOOD, GOOD, GOOD).splits


def said(role: str, text: object) -> dict[str, object]:
    return {"role": role, "content": text}


DROPPED = {
    "line that is no JSON dropped": '{"messages": [',
    "line that is no JSON object dropped": "[1, 2]",
    "line of the form alpaca dropped": {"instruction": "q", "output": "a"},
    "line of no known form dropped": {"body": "q"},
    "chat with the role 'tool' dropped": {"messages": [said(U, "q"), said("tool", "t"), said(A, "a")]},
    "chat without an answer dropped": {"messages": [said(U, "q")]},
    "chat without a question dropped": {"messages": [said(A, "a")]},
    "chat with an empty answer dropped": {"messages": [said(U, "q"), said(A, " \n")]},
    "chat with an empty question dropped": {"messages": [said(U, ""), said(A, "a")]},
    "chat with a system message inside dropped": {"messages": [said(U, "q"), said(S, "s"), said(A, "a")]},
    "chat with two messages of a role in a row dropped": {
        "messages": [said(U, "q"), said(U, "q"), said(A, "a")]
    },
    "chat with a message that is no text dropped": {"messages": [said(U, "q"), said(A, None)]},
    "chat without messages dropped": {"messages": []},
}
MENDED = {
    "answer before any question cut": [said(A, "hello"), said(U, "q"), said(A, "a")],
    "question without an answer at the end cut": [said(U, "q"), said(A, "a"), said(U, "and?")],
    "empty system message cut": [said(S, " "), said(U, "q"), said(A, "a")],
}
CHAT = {"messages": [said(U, "one"), said(A, "two")]}


@pytest.mark.parametrize("rule", DROPPED)
def test_what_is_no_chat_is_counted_with_its_line(chats, rule):
    rows = [{"messages": [said(U, f"{i}"), said(A, "two")]} for i in range(20)]
    found = chats(*rows[:7], DROPPED[rule], *rows[7:])
    assert len(found.splits["train"]) == 20
    assert found.cleaned == {rule: 1}
    assert found.cleaned.first == {rule: "train.jsonl:8"}


@pytest.mark.parametrize("rule", MENDED)
def test_what_is_mended_is_counted(chats, rule):
    found = chats({"messages": MENDED[rule]})
    assert found.splits["train"] == [((U, "q"), (A, "a"))]
    assert found.cleaned == {rule: 1}


def test_too_many_broken_lines_are_refused_with_their_reasons(chats):
    rows = [GOOD] * 6 + ["{", "{", {"prompt": "q", "completion": " "}, {"prompt": "q"}]
    with pytest.raises(DataError, match=r"4 of 10 lines .* no JSON dropped 2 \(first: train\.jsonl:7\)"):
        chats(*rows)
    assert len(chats(*rows, most_dropped=0.5).splits["train"]) == 6


@pytest.mark.parametrize("rows", [({"body": "x"},), ("3", "4"), ("no json",)])
def test_a_file_of_no_known_form(chats, rows):
    with pytest.raises(DataError, match="no line is a chat of a known form"):
        chats(*rows)


def test_keys_of_ones_own(chats):
    found = chats({"frage": "q", "antwort": "a"}, keys={"prompt": "frage", "completion": "antwort"})
    assert found.splits["train"] == [((U, "q"), (A, "a"))]


def test_a_list_that_is_cut_short(chats):
    with pytest.raises(DataError, match="begins as a JSON list"):
        chats('[{"prompt": "q"', name="train.json")


def test_questions_stay_in_one_split_and_copies_are_counted(load, folder):
    rows = [{"prompt": f"question {i % 30}", "completion": f"answer {i}"} for i in range(90)]
    rows += [rows[0]]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load("chats", {"splits": {"train": "a.jsonl"}}, splits={"val": 0.2})
    asked = {split: {chat[0] for chat in some} for split, some in found.splits.items()}
    assert len(asked["val"]) == 6
    assert not asked["train"] & asked["val"]
    assert found.cleaned == CleaningCounts({"copy of another sample of train kept": 1})


def test_json_that_is_nested_too_deep_is_a_line_of_no_use(chats):
    found = chats(*[GOOD] * 10, "[" * 100_000)
    assert found.cleaned["line that is no JSON dropped"] == 1


def test_half_a_character_is_no_text(chats):
    found = chats(*[GOOD] * 10, '{"prompt": "a \\ud800", "completion": "b"}')
    assert found.cleaned["chat with half a character (\\ud800 to \\udfff) dropped"] == 1


@pytest.mark.parametrize("reader", ["chats", "pairs", "text", "text_lines"])
def test_a_split_of_another_name_is_refused(load, folder, reader):
    (folder / "a").write_text("1 a\n")
    with pytest.raises(ConfigError, match=r"unknown split 'tset'; did you mean 'test'"):
        load(reader, {"splits": {"train": "a", "tset": "a"}})
