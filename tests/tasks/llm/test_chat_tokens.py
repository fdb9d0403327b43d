"""Chats become the tokens of the model's template; what is learnt of them is the answers, to their end."""

from contextlib import ExitStack

import pytest

from overnight import RecordingRun
from overnight.data.content import Chats
from overnight.errors import DataError
from tasks.llm.chat_tokens import format_of, formatted
from tasks.llm.chats import ChatParams
from tests.support import tiny_llama
from tests.support.tiny_llama import facts

TWO_TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with tiny_llama.entry(tmp_path_factory.mktemp("weights")) as found:
        yield found


@pytest.fixture
def other(tmp_path):
    """An entry with another template."""
    with ExitStack() as stack:
        yield lambda template: stack.enter_context(tiny_llama.entry(tmp_path, template))


def loaded(folder, base, chats, **values):
    run = RecordingRun(folder)
    return run, formatted(run, ChatParams(**values), Chats(chats), base)


def test_every_answer_is_marked_with_its_end_token_and_nothing_else(base):
    form = format_of(base)
    tokens, answers = form.marked(TWO_TURNS)
    learnt = form.tokenizer.decode([t for t, learnt in zip(tokens, answers, strict=True) if learnt])
    assert learnt == "1<|im_end|>2<|im_end|>"


def test_a_template_without_an_end_token_is_refused(other):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    form = format_of(other(template))
    with pytest.raises(DataError, match=r"without the end token \('<\|im_end\|>'\).*chats\.end"):
        form.marked(TWO_TURNS)


def test_a_template_that_drops_earlier_turns_is_refused(other):
    template = tiny_llama.TEMPLATE.replace("in messages", "in messages[-2:]")
    with pytest.raises(DataError, match=r"up to message 3, otherwise than the whole"):
        format_of(other(template)).marked(TWO_TURNS)


def test_what_a_template_refuses_is_named(other, tmp_path):
    template = "{{ raise_exception('no system message here') }}"
    base = other(template)
    with pytest.raises(DataError, match=r"chat 1 of the split train: .* no system message here"):
        loaded(tmp_path, base, {"train": facts(2)})


def test_a_model_without_a_template_is_refused_and_the_entry_may_give_one(other):
    base = other(None)
    with pytest.raises(DataError, match=r"no chat template.*`template`"):
        format_of(base)
    assert format_of(base.model_copy(update={"template": tiny_llama.TEMPLATE})).marked(TWO_TURNS)


def test_an_end_that_is_no_token_is_refused(base):
    with pytest.raises(DataError, match=r"chats\.end: '<stop>' is no token"):
        format_of(base, "<stop>")
    assert format_of(base, "<|endoftext|>").ends == (0,)


def test_chats_longer_than_the_context_are_left_out_or_cut_and_counted(base, tmp_path):
    long = [("user", "Why?"), ("assistant", "x" * 200)]
    run, chats = loaded(tmp_path, base, {"train": [*facts(3), long]}, context=100)
    assert chats.spec.counts == {"train": 3, "val": 0, "test": 0}
    assert run.last("data/longer_than_the_context_leave_out") == 1
    run, chats = loaded(tmp_path, base, {"train": [*facts(3), long]}, context=100, longer="cut")
    assert chats.arrays("train_lengths")["train_lengths"].max() == 100
    assert run.last("data/longer_than_the_context_cut") == 1
    with pytest.raises(DataError, match=r"no chat is left .*chats\.context.*\(16\)"):
        loaded(tmp_path, base, {"train": [long]}, context=16, longer="cut")


def test_pictures_and_a_system_message(base, tmp_path):
    _, plain = loaded(tmp_path, base, {"train": facts(2)})
    run, chats = loaded(tmp_path, base, {"train": facts(2)}, system="Be short.")
    assert chats.spec.tokens > plain.spec.tokens
    assert {event["path"].rpartition("/")[2] for event in run.of("publish")} == {"lengths.png", "chat.png"}


def test_running_text_is_learnt_whole_with_an_end(base):
    form = format_of(base)
    tokens, learnt = form.marked([{"role": "text", "content": "Once"}])
    assert all(learnt)
    assert form.tokenizer.decode(tokens) == "Once<|im_end|>"


def test_empty_splits_are_kept_empty(base, tmp_path):
    _, chats = loaded(tmp_path, base, {"train": facts(1)})
    assert {len(array) for name, array in chats.arrays().items() if name.startswith(("val", "test"))} == {0}
