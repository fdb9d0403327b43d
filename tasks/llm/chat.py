"""The program behind `overnight chat`: a conversation with a model, in a terminal or through a pipe."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overnight.errors import BadInput, OvernightError
from tasks.llm.client import Client, RequestFailed, Sampling
from tasks.llm.prompts import Message
from tasks.llm.server import llama_cpp

HELP = "/new begins anew, /quit ends (so does Ctrl-D); Ctrl-C ends an answer"


def main() -> int:
    """Exit code 0; 1 when the model does not answer; 2 for a source that is none."""
    options = _options()
    try:
        with _opened(options) as (client, model):
            _talk(client, model, options)
    except OvernightError as error:
        print(f"overnight: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="overnight chat")
    parser.add_argument("source")  # a .gguf, or the address of a server
    parser.add_argument("--model", default="")
    parser.add_argument("--key-variable", default="")
    parser.add_argument("--system", default="")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=4096)
    return parser.parse_args()


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[tuple[Client, str]]:
    """A client of the server, and the model's name there. Raises BadInput or OvernightError."""
    if options.source.startswith(("http://", "https://")):
        key = os.environ.get(options.key_variable, "") if options.key_variable else ""
        if options.key_variable and not key:
            raise BadInput(f"--key-variable {options.key_variable}: is not set here; export it")
        with Client(options.source, key, retries=1) as client:
            yield client, client.choose(options.model, client.wait_until_ready(0))
        return
    file = Path(options.source)
    if file.suffix != ".gguf" or not file.is_file():
        raise BadInput(
            f"{options.source}: is no weights' entry, no .gguf file, and no address that begins with http"
        )
    with (
        tempfile.TemporaryDirectory(prefix="overnight-chat-") as folder,
        llama_cpp(file, Path(folder), options.context, name=file.stem) as served,
        Client(served.url, served.key, timeout_s=3600, retries=0) as client,
    ):
        yield client, client.wait_until_ready(60)[0]


def _talk(client: Client, model: str, options: argparse.Namespace) -> None:
    """Until the input ends. In a terminal a question that fails is left out; else raises RequestFailed."""
    beginning: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(beginning)
    sampling = Sampling(options.tokens, options.temperature, options.seed)
    if sys.stdin.isatty():
        print(f"{model}. {HELP}")
    for text in _questions():
        if text == "/new":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": text})
        try:
            messages = _answered(client, model, messages, sampling, len(beginning))
        except KeyboardInterrupt:
            messages.pop()
            print("\n(stopped; this question is left out)", file=sys.stderr)
        except RequestFailed as failure:
            if not sys.stdin.isatty():
                raise
            messages.pop()
            print(f"\n{failure}; this question is left out", file=sys.stderr)


def _questions() -> Iterator[str]:
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text:
            yield text


def _answered(
    client: Client, model: str, messages: list[Message], sampling: Sampling, first: int
) -> list[Message]:
    """The conversation with its answer; its oldest turns are left out where it is longer than the context.

    first: how many messages at the beginning stay. Raises RequestFailed.
    """
    left_out = 0
    while True:
        try:
            answer = client.chat(model, messages, sampling, lambda part: print(part, end="", flush=True))
        except RequestFailed as failure:
            if "context" not in str(failure) or len(messages) - first < 3:
                raise
            messages = [*messages[:first], *messages[first + 2 :]]
            left_out += 2
            continue
        print()
        if left_out:
            print(f"({left_out} messages left out: longer than the context)", file=sys.stderr)
        if not answer.ended:
            print(f"(cut at {sampling.tokens} tokens: --tokens)", file=sys.stderr)
        return [*messages, {"role": "assistant", "content": answer.text}]


if __name__ == "__main__":
    sys.exit(main())
