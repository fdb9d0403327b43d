"""The Modelfile of Ollama for a GGUF: its template in Go's language, found by asking the model's own."""

from dataclasses import dataclass

from overnight.errors import DataError
from tasks.llm.chat_tokens import Format

SYSTEM, USER, ANSWER, AGAIN = "\u00a7S\u00a7", "\u00a7U\u00a7", "\u00a7A\u00a7", "\u00a7V\u00a7"
CHAT = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": AGAIN},
]


@dataclass(frozen=True)
class Pieces:
    """What a template writes before and after each role's text.

    leading: at the very beginning; begin: of an answer; default: the system's text where none is given.
    """

    leading: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    begin: str
    default: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """As the Go template renders them, with the beginning of an answer."""
        blocks = {"system": self.system, "user": self.user, "assistant": self.assistant}
        if self.default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        parts = [blocks[one["role"]][0] + one["content"] + blocks[one["role"]][1] for one in messages]
        return "".join([self.leading, *parts, self.begin])


def modelfile(form: Format, gguf: str) -> str:
    """Without a TEMPLATE where the model's own is not made of a piece before and after each message."""
    found = pieces(form)
    lines = [f"FROM ./{gguf}"]
    if found is not None:
        roles = [("system", found.system), ("user", found.user), ("assistant", found.assistant)]
        blocks = [
            f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'
            for role, (before, after) in roles
        ]
        body = f"{found.leading}{{{{ range .Messages }}}}{''.join(blocks)}{{{{ end }}}}{found.begin}"
        lines.append(f'TEMPLATE """{body}"""')
        lines += [f'SYSTEM """{found.default}"""'] if found.default else []
    ends = form.tokenizer.convert_ids_to_tokens(list(form.ends))
    return "\n".join([*lines, *(f'PARAMETER stop "{end}"' for end in ends)]) + "\n"


def pieces(form: Format) -> Pieces | None:
    """None where the pieces do not make up what the template writes, with and without a system message."""
    try:
        found = _pieces(form)
    except (
        ValueError,
        IndexError,
        DataError,
    ):  # a piece is not where it was looked for, or no system is taken
        return None
    asked = [CHAT, CHAT[1:]]
    same = all(found.text(chat) == form.text(chat, asks=True) for chat in asked)
    odd = any(mark in found.text(CHAT) for mark in ('"""', "{{", "}}"))
    return found if same and not odd else None


def _pieces(form: Format) -> Pieces:
    """Raises ValueError."""
    after_user = form.text(CHAT[:2], asks=False).split(USER)[1]
    after_answer = form.text(CHAT[:3], asks=False).split(ANSWER)[1]
    before_answer = _without(form.text(CHAT[:3], asks=False).split(USER)[1].split(ANSWER)[0], after_user, "")
    before_user = _without(form.text(CHAT, asks=False).split(ANSWER)[1].split(AGAIN)[0], after_answer, "")
    first, rest = form.text(CHAT[:2], asks=False).split(SYSTEM)
    after_system = _without(rest.split(USER)[0], "", before_user)
    leading = _without(form.text(CHAT[1:2], asks=False).split(USER)[0], "", before_user)
    default = ""
    if leading.startswith(first) and leading.endswith(after_system) and after_system:
        default, leading = leading[len(first) : -len(after_system)], ""
    return Pieces(
        leading,
        (_without(first, leading, ""), after_system),
        (before_user, after_user),
        (before_answer, after_answer),
        _without(form.text(CHAT[:2], asks=True), form.text(CHAT[:2], asks=False), ""),
        default,
    )


def _without(text: str, before: str, after: str) -> str:
    """Raises ValueError where it does not begin and end so."""
    if not (text.startswith(before) and text.endswith(after)):
        raise ValueError(text)
    return text[len(before) : len(text) - len(after)]
