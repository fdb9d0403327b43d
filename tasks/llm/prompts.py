"""Prompts as people keep them: a list in a config, a text file, or JSON lines."""

import json
from pathlib import Path
from typing import Any

from overnight.errors import DataError
from overnight.paths import root, shown

Message = dict[str, str]  # role: system, user or assistant; content
Prompt = list[Message]
ROLES = ("system", "user", "assistant")
SHOWN = 5  # lines in a message


def read_prompts(given: Path | tuple[str, ...]) -> list[Prompt]:
    """The conversations to continue, each a list of messages that ends with one of the user.

    given: the prompts themselves; or a file: .txt with one a line, or .jsonl with {"prompt": ...},
    {"messages": [{"role": ..., "content": ...}]} or a text a line. Raises DataError with every bad line.
    """
    if not isinstance(given, Path):
        return [_asked(text) for text in given]
    path = root() / given.expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "is no text in UTF-8" if isinstance(error, ValueError) else error.strerror
        raise DataError(f"{shown(path)}: {why}; give a .txt or .jsonl of prompts") from None
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return _some([_asked(line) for _, line in lines], path)
    found, problems = list[Prompt](), list[str]()
    for number, line in lines:
        try:
            found.append(_of_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            said = f"is no JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(f"{shown(path)}:{number}: {said}; mend or remove the line")
    if problems:
        more = len(problems) - SHOWN
        raise DataError([*problems[:SHOWN], *([f"and {more} more lines like these"] if more > 0 else [])])
    return _some(found, path)


def _asked(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


def _some(found: list[Prompt], path: Path) -> list[Prompt]:
    if not found:
        raise DataError(f"{shown(path)}: holds no prompt; write one a line")
    return found


def _of_json(value: Any) -> Prompt:
    """Raises ValueError with what is wrong."""
    if isinstance(value, dict):
        value = value.get("messages", value.get("prompt"))
    if isinstance(value, str) and value.strip():
        return _asked(value)
    if not isinstance(value, list) or not value:
        raise ValueError('has neither a "prompt" nor "messages"')
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"has a message whose role is not one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError("has a message whose content is no text")  # noqa: TRY004 - as above
    if value[-1]["role"] != "user":
        raise ValueError(f"ends with the role {value[-1]['role']!r}, not user: there is nothing to answer")
    return [{"role": message["role"], "content": message["content"]} for message in value]
