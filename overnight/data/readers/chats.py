"""Conversations to learn from, as JSON lines or a JSON list, in the forms that people have them."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from overnight.config import Values
from overnight.data.content import Chat, Chats, CleaningCounts, Message
from overnight.data.readers._common import BySplit, Files, is_whole, present, text
from overnight.errors import file_error

Form = Literal["messages", "sharegpt", "alpaca", "prompt", "text"]
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
}  # fmt: skip
ANSWERS = {
    "prompt": ("completion", "response", "answer"),
    "question": ("answer", "response"),
    "query": ("response",),
    "input": ("output",),
}


class Options(Values):
    splits: BySplit[Files] = Field(min_length=1)
    form: Form | None = None  # that of most lines when left out
    # names of keys, by what they stand for: {prompt: frage, completion: antwort}
    keys: dict[str, str] = {}
    most_dropped: float = Field(0.1, ge=0, lt=1)  # the share of lines above which a file is refused


class _Odd(Exception):
    """Why a line is dropped."""


def read(folder: Path, options: Options, _kind: str) -> Chats:
    """Every line that is dropped or mended is counted by its rule, the first with its number."""
    lines = {
        split: [(name, *row) for name in names for row in _rows(present(folder, name))]
        for split, names in options.splits.items()
    }
    form = options.form or _form_of_most(folder, [row[2] for rows in lines.values() for row in rows], options)
    cleaned, splits = CleaningCounts(), dict[str, list[Chat]]()
    for split, rows in lines.items():
        splits[split] = _chats(folder, rows, form, options, cleaned)
    return Chats(splits, cleaned=cleaned)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line, or of each item of a JSON list; an exception where it is no JSON."""
    content = text(path)
    if content.lstrip()[:1] == "[":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise file_error(
                path, f"begins as a JSON list, but is none: {error}; get the whole file"
            ) from None
        yield from enumerate(found, 1)
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _Odd("line that is no JSON dropped")


def _form_of_most(folder: Path, rows: list[Any], options: Options) -> Form:
    forms = [form_of(row, options.keys) for row in rows]
    counts = Counter[Form](form for form in forms if form)
    if not counts:
        seen = next((list(row)[:8] for row in rows if isinstance(row, dict)), None)
        have = f"the keys {', '.join(map(repr, seen))}" if seen else "no JSON objects"
        raise file_error(
            folder,
            f"no line is a chat of a known form, there are {have}; give messages, conversations, prompt and "
            "completion, instruction and output, or text, or say by `keys` what stands for them",
        )
    return counts.most_common(1)[0][0]


def form_of(row: Any, keys: dict[str, str]) -> Form | None:
    """By its keys; None where it is of no known form."""
    if not isinstance(row, dict):
        return None
    for form, reading in READINGS.items():
        try:
            reading(row, keys)
        except KeyError:
            continue
        except _Odd:  # of this form, but of no use
            return form
        return form
    return None


def _chats(
    folder: Path, rows: list[tuple[str, int, Any]], form: Form, options: Options, cleaned: CleaningCounts
) -> list[Chat]:
    """Raises DataError where more is dropped than the entry allows, or nothing is left."""
    found, dropped, first = list[Chat](), Counter[str](), dict[str, str]()
    for name, number, row in rows:
        try:
            found.append(_chat(row, form, options.keys, partial(_mended, cleaned, f"{name}:{number}")))
        except _Odd as odd:
            dropped[str(odd)] += 1
            first.setdefault(str(odd), f"{name}:{number}")
    for rule, count in dropped.items():
        cleaned[rule] += count
        cleaned.first.setdefault(rule, first[rule])
    if dropped.total() > options.most_dropped * len(rows) or not found:
        said = ", ".join(f"{rule} {count:,} (first: {first[rule]})" for rule, count in dropped.most_common(4))
        raise file_error(
            folder / rows[0][0] if rows else folder,
            f"{dropped.total():,} of {len(rows):,} lines are no chats of the form {form}: "
            f"{said or 'it is empty'}; mend them, or raise `most_dropped` ({options.most_dropped:g})",
        )
    return found


def _mended(cleaned: CleaningCounts, where: str, rule: str) -> None:
    cleaned.at(rule, where)


def _chat(row: Any, form: Form, keys: dict[str, str], mended: Callable[[str], None]) -> Chat:
    """Raises _Odd."""
    if isinstance(row, _Odd):
        raise row
    if not isinstance(row, dict):
        raise _Odd("line that is no JSON object dropped")
    try:
        messages = READINGS[form](row, keys)
    except KeyError:
        other = form_of(row, keys)
        raise _Odd(
            f"line of the form {other} dropped" if other else "line of no known form dropped"
        ) from None
    if not all(map(is_whole, (content for _, content in messages))):
        raise _Odd("chat with half a character (\\ud800 to \\udfff) dropped")
    return messages if form == "text" else _checked(messages, mended)


def _checked(messages: Chat, mended: Callable[[str], None]) -> Chat:
    """System first, then questions and answers in turn, an answer last. Raises _Odd."""
    if any(role == "system" for role, _ in messages[1:]):
        raise _Odd("chat with a system message inside dropped")
    head, turns = messages[:1] if messages[:1] and messages[0][0] == "system" else (), list(messages)
    turns = turns[len(head) :]
    roles = {role for role, _ in turns}
    if roles != {"user", "assistant"}:
        raise _Odd(
            "chat without an answer dropped"
            if "assistant" not in roles
            else "chat without a question dropped"
        )
    if turns[0][0] == "assistant":
        mended("answer before any question cut")
        turns = turns[1:]
    if turns and turns[-1][0] == "user":
        mended("question without an answer at the end cut")
        turns = turns[:-1]
    if any(one[0] == other[0] for one, other in pairwise(turns)):
        raise _Odd("chat with two messages of a role in a row dropped")
    if not turns:
        raise _Odd("chat without an answer dropped")
    if any(not content.strip() for _, content in turns):
        blank = next(role for role, content in turns if not content.strip())
        raise _Odd(
            "chat with an empty answer dropped"
            if blank == "assistant"
            else "chat with an empty question dropped"
        )
    if head and not head[0][1].strip():
        mended("empty system message cut")
        head = ()
    return (*head, *turns)


# ------------------------------------------------------------------------------------------------ forms


def _messages(row: dict[str, Any], keys: dict[str, str]) -> Chat:
    name = keys.get("messages", "messages")
    return _listed(row[name if name in row else "conversations"], "role", "content")


def _sharegpt(row: dict[str, Any], keys: dict[str, str]) -> Chat:
    return _listed(row[keys.get("conversations", "conversations")], "from", "value")


def _listed(given: Any, role: str, content: str) -> Chat:
    """Raises KeyError for another form, _Odd for an unknown role."""
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise KeyError(role)
    found = list[Message]()
    for one in given:
        name, said = str(one[role]).lower(), one[content]
        if name not in ROLES:
            raise _Odd(f"chat with the role {name!r} dropped")
        if not isinstance(said, str):
            raise _Odd("chat with a message that is no text dropped")
        found.append((ROLES[name], said))
    if not found:
        raise _Odd("chat without messages dropped")
    return tuple(found)


def _alpaca(row: dict[str, Any], keys: dict[str, str]) -> Chat:
    asked, more = row[keys.get("instruction", "instruction")], row.get(keys.get("input", "input")) or ""
    answer, system = row[keys.get("output", "output")], row.get("system") or ""
    if not all(isinstance(one, str) for one in (asked, more, answer, system)):
        raise _Odd("chat with a message that is no text dropped")
    question = f"{asked}\n\n{more}" if more.strip() else asked
    head: Chat = (("system", system),) if system.strip() else ()
    return (*head, ("user", question), ("assistant", answer))


def _prompt(row: dict[str, Any], keys: dict[str, str]) -> Chat:
    if "instruction" in row and "prompt" not in keys:  # a question of which `input` is but a part
        raise KeyError("prompt")
    names = {"prompt": keys["prompt"]} if "prompt" in keys else {name: name for name in ANSWERS}
    for name, key in names.items():
        answers = (keys["completion"],) if "completion" in keys else ANSWERS[name]
        answer = next((one for one in answers if one in row), None)
        if key in row and answer:
            if isinstance(row[key], list) and isinstance(row[answer], list):  # of messages
                return (*_listed(row[key], "role", "content"), *_listed(row[answer], "role", "content"))
            if not isinstance(row[key], str) or not isinstance(row[answer], str):
                raise _Odd("chat with a message that is no text dropped")
            return (("user", row[key]), ("assistant", row[answer]))
    raise KeyError("prompt")


def _text(row: dict[str, Any], keys: dict[str, str]) -> Chat:
    given = row[keys.get("text", "text")]
    if not isinstance(given, str) or not given.strip():
        raise _Odd("empty text dropped")
    return (("text", given),)


READINGS: dict[Form, Callable[[dict[str, Any], dict[str, str]], Chat]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt": _prompt,
    "text": _text,
}
