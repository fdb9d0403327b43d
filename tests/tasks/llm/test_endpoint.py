"""Servers as steps: answers handed on, every failed try counted, nothing left running."""

import json
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from overnight import RecordingRun
from overnight.errors import BadInput, DataError, OvernightError
from tasks.llm.client import RequestFailed
from tasks.llm.endpoint import AskParams, EndpointParams, ServerParams, ask_endpoint, ask_server
from tasks.llm.prompts import read_prompts
from tests.support.chat_server import chat_server

PROMPTS = tuple(f"number {i}" for i in range(12))
# A server that notes its pid, checks its key, and answers one model's requests.
PROGRAM = textwrap.dedent(
    """
    import os, sys, time
    sys.path.insert(0, {root!r})
    import tests.support.chat_server as chat
    port, key, place, serves = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "yes"
    open(place, "w").write(str(os.getpid()))
    if not serves:
        print("out of VRAM: layer 17", flush=True)
        sys.exit(3)
    with chat.chat_server(key=key, port=port):
        time.sleep(3600)
    """
)


def test_no_request_is_lost_whatever_fails(tmp_path):
    faults = ("429", "500", "503", "cut", "bad JSON", "error", "hang up", "page", "429", "no usage", "plain")
    run = RecordingRun(tmp_path)
    with chat_server(*faults) as server:
        params = EndpointParams(url=server.url, unload=True)
        found = ask_endpoint.body(
            run, params, AskParams(prompts=PROMPTS, parallel=3, system="be brief", pause_s=0.01)
        )
    rows = [json.loads(line) for line in (found.path / "answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [f"Answer to {prompt}" for prompt in PROMPTS]
    assert all(row["messages"][0] == {"role": "system", "content": "be brief"} for row in rows)
    assert run.last("retries") == 9
    assert run.last("errors/429") == 2
    assert run.last("ended_share") == 1
    assert server.unloaded == [{"model": "small", "keep_alive": 0}]
    assert {event["path"].rpartition("/")[2] for event in run.of("publish")} == {"latency.png", "answers.md"}


def test_a_request_that_fails_for_good_is_named_and_keeps_the_answers_so_far(tmp_path):
    with chat_server("", "", "400") as server, pytest.raises(RequestFailed, match="prompt 3 of 12"):
        ask_endpoint.body(RecordingRun(tmp_path), EndpointParams(url=server.url), AskParams(prompts=PROMPTS))
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_a_key_comes_from_the_variable_alone(tmp_path, monkeypatch):
    params = {"key_variable": "SMALL_KEY"}
    with chat_server(key="secret-of-mine") as server:
        monkeypatch.delenv("SMALL_KEY", raising=False)
        with pytest.raises(BadInput, match="SMALL_KEY is not set"):
            ask_endpoint.body(
                RecordingRun(tmp_path), EndpointParams(url=server.url, **params), AskParams(prompts=("a",))
            )
        monkeypatch.setenv("SMALL_KEY", "secret-of-mine")
        run = RecordingRun(tmp_path)
        ask_endpoint.body(run, EndpointParams(url=server.url, **params), AskParams(prompts=("a",)))
    assert "secret-of-mine" not in json.dumps(run.events)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret-of-mine" in content for content in written)


@pytest.mark.parametrize("key", ["sk-123", "nvapi-x", "my key"])
def test_a_key_in_the_config_is_refused(key):
    with pytest.raises(ValidationError, match="never the key itself"):
        EndpointParams(url="http://127.0.0.1:1/v1", key_variable=key)


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(root=str(Path.cwd())))

    def command(serves: str = "yes") -> tuple[str, ...]:
        return (sys.executable, str(path), "{port}", "{key}", str(tmp_path / "pid"), serves)

    return command


def test_a_server_of_the_users_own_lives_as_long_as_its_step(tmp_path, program):
    run = RecordingRun(tmp_path)
    found = ask_server.body(run, ServerParams(command=program()), AskParams(prompts=("a", "b")))
    assert len((found.path / "answers.jsonl").read_text().splitlines()) == 2
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_server_that_ends_by_itself_is_told_with_its_log(tmp_path, program):
    with pytest.raises(OvernightError, match=r"exit code 3: .*out of VRAM: layer 17"):
        ask_server.body(
            RecordingRun(tmp_path), ServerParams(command=program("no")), AskParams(prompts=("a",))
        )


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="'no-such-server': cannot be started"):
        ask_server.body(
            RecordingRun(tmp_path),
            ServerParams(command=("no-such-server", "{port}")),
            AskParams(prompts=("a",)),
        )


LINES = {
    '{"prompt": "a"}': "a",
    '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]}': "b",
    '"c"': "c",
}


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\ufeff" + "\n\n".join(LINES), encoding="utf-8")
    assert [prompt[-1]["content"] for prompt in read_prompts(path)] == list(LINES.values())
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\ntwo\n")
    assert read_prompts(text) == [[{"role": "user", "content": word}] for word in ("one", "two")]


@pytest.mark.parametrize(
    ("line", "said"),
    {
        '{"prompt": "a"': "is no JSON",
        '{"text": "a"}': 'has neither a "prompt" nor "messages"',
        '{"prompt": " "}': 'has neither a "prompt" nor "messages"',
        '{"messages": [{"role": "bot", "content": "a"}]}': "role is not one of",
        '{"messages": [{"role": "user", "content": 3}]}': "content is no text",
        '{"messages": [{"role": "assistant", "content": "a"}]}': "nothing to answer",
        "[]": "has neither",
    }.items(),
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(DataError, match=f"jsonl:2: .*{said}"):
        read_prompts(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00x"])
def test_a_file_without_prompts(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"prompts\.txt"):
        read_prompts(path)


def test_one_of_the_two_servers():
    from flows.endpoint import Endpoint

    with pytest.raises(ValidationError, match="either endpoint"):
        Endpoint(ask={"prompts": ["a"]})
