"""`overnight chat NAME`: talk to a language model in the terminal."""

import argparse
import subprocess
import sys

from overnight.cli.command import Command
from overnight.paths import root


def _chat(arguments: argparse.Namespace) -> int:
    words = [arguments.name, *_given(arguments)]
    return subprocess.call([sys.executable, "-m", "tasks.llm.chat", *words], cwd=root())


def _given(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as words again."""
    names = ("model", "key_variable", "system", "tokens", "temperature", "seed", "context")
    values = {name: getattr(arguments, name) for name in names}
    pairs = [(f"--{name.replace('_', '-')}", str(v)) for name, v in values.items() if v is not None]
    return [word for pair in pairs for word in pair]


COMMAND: Command = (
    _chat,
    "talk to a language model: a .gguf, or a server by its address",
    {
        "name": {"help": "a .gguf file, or the address of an OpenAI-compatible server, with /v1"},
        "--model": {"help": "by its name at the server; the only one when left out"},
        "--key-variable": {"metavar": "NAME", "help": "the environment variable that holds the server's key"},
        "--system": {"metavar": "TEXT", "help": "a message before the conversation"},
        "--tokens": {"type": int, "help": "the most of an answer; 512 when left out"},
        "--temperature": {"type": float, "help": "0.7 when left out; 0: the most probable token each time"},
        "--seed": {"type": int, "help": "0 when left out"},
        "--context": {"type": int, "help": "tokens of a conversation, for a .gguf; 4096 when left out"},
    },
)
