"""`overnight chat NAME`: talk to a language model in the terminal."""

import argparse
import subprocess
import sys
from pathlib import Path

from overnight.cli.command import Command
from overnight.errors import BadInput
from overnight.paths import root


def _chat(arguments: argparse.Namespace) -> int:
    words = [_source(arguments.name), *_given(arguments)]
    return subprocess.call([sys.executable, "-m", "tasks.llm.chat", *words], cwd=root())


def _source(name: str) -> str:
    """The .gguf of an entry of weights, or of a folder; else the name itself. Raises BadInput."""
    from overnight.data.pretrained import load_entry, names

    if name in names():
        entry = load_entry(name)
        if entry.form != "gguf":
            raise BadInput(f"{entry.called} is of the form {entry.form}; a conversation needs a gguf")
        return str(entry.locate())
    path = Path(name)
    if not path.is_dir():
        return str(path.resolve()) if path.is_file() else name
    found = sorted(path.rglob("*.gguf"))
    if not found:
        raise BadInput(f"{name}: holds no .gguf")
    return str(found[0].resolve())


def _given(arguments: argparse.Namespace) -> list[str]:
    """The options that were given, as words again."""
    names = ("model", "key_variable", "system", "tokens", "temperature", "seed", "context")
    values = {name: getattr(arguments, name) for name in names}
    pairs = [(f"--{name.replace('_', '-')}", str(v)) for name, v in values.items() if v is not None]
    return [word for pair in pairs for word in pair]


COMMAND: Command = (
    _chat,
    "talk to a language model: weights, a .gguf, or a server by its address",
    {
        "name": {
            "help": "weights in GGUF by the name of their entry, a .gguf file or a folder with one, or the "
            "address of an OpenAI-compatible server, with /v1"
        },
        "--model": {"help": "by its name at the server; the only one when left out"},
        "--key-variable": {"metavar": "NAME", "help": "the environment variable that holds the server's key"},
        "--system": {"metavar": "TEXT", "help": "a message before the conversation"},
        "--tokens": {"type": int, "help": "the most of an answer; 512 when left out"},
        "--temperature": {"type": float, "help": "0.7 when left out; 0: the most probable token each time"},
        "--seed": {"type": int, "help": "0 when left out"},
        "--context": {"type": int, "help": "tokens of a conversation, for a .gguf; 4096 when left out"},
    },
)
