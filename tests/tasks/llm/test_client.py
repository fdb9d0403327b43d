"""Servers that fail: what passes by itself is tried again and counted, the rest is named at once."""

import json

import pytest

from overnight.errors import Stopped
from tasks.llm.client import Client, RequestFailed, Sampling
from tests.support.chat_server import MODEL, chat_server
from tests.support.checkouts import free_port

PROMPT = [{"role": "user", "content": "the question of the day"}]
WHOLE = "Answer to the question of the day"
PASSING = {
    "429": "429",
    "500": "500",
    "503": "503",
    "page": "wrong JSON",
    "hang up": "cut",
    "cut": "cut",
    "bad JSON": "wrong JSON",
    "error": "error",
}


def client(server, **options) -> Client:
    return Client(server.url, **{"pause_s": 0.01, "retries": 2, **options})


@pytest.mark.parametrize(("fault", "kind"), PASSING.items())
def test_what_passes_by_itself_is_tried_again(fault, kind):
    with chat_server(fault) as server, client(server) as asked:
        answer = asked.chat(MODEL, PROMPT, Sampling(seed=3))
    assert answer.text == WHOLE
    assert answer.tries == 2
    assert asked.failures == {kind: 1}
    assert server.asked[1]["seed"] == 3


@pytest.mark.parametrize("fault", ["silence", "drip"])
def test_a_slow_answer_is_given_up(fault):
    with (
        chat_server(fault) as server,
        client(server, timeout_s=2.0, retries=0) as asked,
        pytest.raises(RequestFailed, match="no whole answer in 2 s") as caught,
    ):
        asked.chat(MODEL, PROMPT, Sampling())
    assert caught.value.kind == "timeout"


@pytest.mark.parametrize("fault", PASSING)
def test_the_last_try_is_told(fault):
    with (
        chat_server(fault, fault) as server,
        client(server, retries=1) as asked,
        pytest.raises(RequestFailed, match=r"\(try 2\)"),
    ):
        asked.chat(MODEL, PROMPT, Sampling())
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "said"), {"400": "answers 400", "another model": "'other' answered, 'small' was asked"}.items()
)
def test_what_will_not_pass_is_an_error_at_once(fault, said):
    with chat_server(fault) as server, client(server) as asked, pytest.raises(RequestFailed, match=said):
        asked.chat(MODEL, PROMPT, Sampling())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("fault", "text", "ended", "tokens"),
    [
        ("limit", WHOLE, False, 7),
        ("empty", "", True, 0),
        ("no usage", WHOLE, True, 7),
        ("plain", WHOLE, True, 1),
    ],
)
def test_odd_but_whole_answers(fault, text, ended, tokens):
    with chat_server(fault) as server, client(server) as asked:
        answer = asked.chat(MODEL, PROMPT, Sampling())
    assert (answer.text, answer.ended, answer.tokens, answer.tries) == (text, ended, tokens, 1)


def test_a_refused_key_is_named_and_never_shown():
    with (
        chat_server(key="right") as server,
        client(server, key="wrong-secret") as asked,
        pytest.raises(RequestFailed, match="key_variable") as caught,
    ):
        asked.wait_until_ready(5)
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.kind == "401"


def test_the_key_is_sent():
    with chat_server(key="right") as server, client(server, key="right") as asked:
        assert asked.wait_until_ready(5) == [MODEL]
        assert asked.chat(MODEL, PROMPT, Sampling()).text == WHOLE
    assert server.headers[0]["Authorization"] == "Bearer right"


def test_a_server_that_is_not_there():
    with (
        Client(f"http://127.0.0.1:{free_port()}/v1", pause_s=0.01) as asked,
        pytest.raises(RequestFailed, match="is the server running") as caught,
    ):
        asked.wait_until_ready(0.1)
    assert caught.value.kind == "no connection"


@pytest.mark.parametrize(
    ("part", "good"),
    [
        ('{"error": null, "choices": [{"message": {"content": "a"}}]}', True),
        ('{"choices": null, "usage": {"completion_tokens": 3, "prompt_tokens": null}}', True),
        ('{"choices": {"a": 1}}', False),
        ('{"choices": ["a"]}', False),
        ('{"choices": [{"message": "a"}]}', False),
        ('{"choices": [{"delta": {"content": [{"text": "a"}]}}]}', False),
        ('{"usage": [1]}', False),
        ('{"usage": {"completion_tokens": "many"}}', False),
        ("[" * 100_000, False),
    ],
)
def test_an_answer_of_another_form_is_wrong_json(part, good):
    with Client("http://127.0.0.1:1/v1") as asked:
        if good:
            assert asked._json(part) == json.loads(part)
            return
        with pytest.raises(RequestFailed) as caught:
            asked._json(part)
    assert (caught.value.kind, caught.value.again) == ("wrong JSON", True)


@pytest.mark.parametrize("key", ["secret\n", "secret ", "secr\u00e9t", "sec\x01ret"])
def test_a_key_that_no_header_can_carry_is_refused_without_it(key):
    with pytest.raises(RequestFailed, match="the key holds") as caught:
        Client("http://127.0.0.1:1/v1", key)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1/v1", f"http://{'a' * 70}.x/v1"])
def test_an_address_that_is_none(url):
    with pytest.raises(RequestFailed) as caught, Client(url) as asked:
        asked.wait_until_ready(0)
    assert caught.value.kind == "bad address"


def test_a_stop_ends_the_wait():
    def check() -> None:
        raise Stopped("stopped")

    with Client(f"http://127.0.0.1:{free_port()}/v1", check=check) as asked, pytest.raises(Stopped):
        asked.wait_until_ready(60)


@pytest.mark.parametrize(
    ("model", "served", "found"),
    [
        ("", ["only"], "only"),
        ("llama3.2", ["llama3.2:latest", "other"], "llama3.2:latest"),
        ("a.gguf", ["/models/a.gguf"], "/models/a.gguf"),
    ],
)
def test_the_model_by_its_name(model, served, found):
    with Client("http://127.0.0.1:1/v1") as asked:
        assert asked.choose(model, served) == found


@pytest.mark.parametrize(("model", "served"), [("llama3", ["llama3.2", "phi"]), ("", ["a", "b"]), ("", [])])
def test_a_model_that_is_not_served_is_named_with_those_that_are(model, served):
    with Client("http://127.0.0.1:1/v1") as asked, pytest.raises(RequestFailed) as caught:
        asked.choose(model, served)
    assert (", ".join(served) or "none") in str(caught.value)
