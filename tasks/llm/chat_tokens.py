"""Chats to token ids: formatted by a template, with the tokens of the answers marked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight.artifact import Artifact, DataSpec
from overnight.data.content import Chats
from overnight.data.dataset import Dataset
from overnight.data.pretrained import Pretrained
from overnight.errors import DataError, one_line
from overnight.run import Run
from tasks.llm.base import digest_of, most_tokens, tokenizer_of
from tasks.llm.gguf import as_transformers
from tasks.llm.tune_params import ChatParams
from tasks.shared import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Messages = list[dict[str, str]]
SHOWN_TOKENS, LINE = 600, 100  # of the formatted chat's picture: tokens, characters a line
SPLITS = ("train", "val", "test")
TEXT = "text"  # the role of running text


@dataclass(frozen=True)
class Format:
    """A tokenizer with a template, and the ids of the tokens that end an answer."""

    tokenizer: Any
    ends: tuple[int, ...]

    def text(self, messages: Messages, asks: bool) -> str:
        """asks: with the beginning of an answer at the end. Raises DataError."""
        try:
            found = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # noqa: BLE001 - what a template raises is its author's choice
            raise DataError(f"the template refuses it: {one_line(error)}") from None
        return str(found)

    def ids(self, messages: Messages, asks: bool) -> list[int]:
        """As of text. Raises DataError."""
        return self.encoded(self.text(messages, asks))

    def encoded(self, text: str) -> list[int]:
        """Nothing is added: a template writes all there is."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def marked(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """All tokens, and which are of an answer, its end token included; of running text all are.

        Raises DataError.
        """
        if messages[0]["role"] == TEXT:
            text = self.encoded(messages[0]["content"])
            return [*text, self.ends[0]], [True] * (len(text) + 1)
        whole = self.ids(messages, asks=False)
        answers = [False] * len(whole)
        for i in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            asked, answered = self.ids(messages[:i], asks=True), self.ids(messages[: i + 1], asks=False)
            begin, stop = len(asked), len(answered)
            if whole[:begin] != asked or whole[:stop] != answered or begin >= stop:
                raise DataError(
                    f"the template formats the beginning of a chat, up to message {i + 1}, otherwise than "
                    "the whole of it: which tokens are the answer's cannot be said; give the entry another "
                    "`template`"
                )
            last = max((at for at in range(begin, stop) if whole[at] in self.ends), default=None)
            if last is None:
                names = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(list(self.ends))))
                raise DataError(
                    f"the template ends an answer without the end token ({names}), so the model would learn "
                    "to talk for ever; name the token that the template ends answers with as `chats.end`"
                )
            answers[begin : last + 1] = [True] * (last + 1 - begin)
        return whole, answers


def format_of(base: Pretrained, end: str = "") -> Format:
    """Raises DataError: no template, an end that is no token."""
    tokenizer = tokenizer_of(base)
    if not tokenizer.chat_template:
        raise DataError(
            f"{base.called}: the model has no chat template, so how it is asked is not known; "
            "give the entry a `template`, or take a model that was made for chats"
        )
    return Format(tokenizer, _ends(base, tokenizer, end))


def _ends(base: Pretrained, tokenizer: Any, end: str) -> tuple[int, ...]:
    from transformers import GenerationConfig

    if end:
        found = tokenizer.get_vocab().get(end)
        if found is None:
            raise DataError(f"chats.end: {end!r} is no token of {base.name}; give one of its special tokens")
        return (int(found),)
    ids = {tokenizer.eos_token_id}
    folder = as_transformers(base)
    if (folder / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(folder).eos_token_id
        ids |= set(given if isinstance(given, list) else [given])
    known = tuple(sorted(int(one) for one in ids if one is not None))
    if not known:
        raise DataError(f"{base.name}: its tokenizer names no end token; give it as `chats.end`")
    return known


@dataclass
class Split:
    """tokens and answers of each chat; bytes: UTF-8 of its answers."""

    tokens: list[list[int]]
    answers: list[list[bool]]
    bytes: list[int]

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        tokens, answers = (
            np.array([one for chat in chats for one in chat], dtype)
            for chats, dtype in ((self.tokens, np.int32), (self.answers, np.bool_))
        )
        return {
            f"{split}_tokens": tokens,
            f"{split}_answers": answers,
            f"{split}_lengths": np.array([len(one) for one in self.tokens], np.int64),
            f"{split}_bytes": np.array(self.bytes, np.int64),
        }


def load(run: Run, params: ChatParams, data: Dataset, base: Pretrained) -> Artifact:
    chats = data.load_as(Chats)
    run.cleaned(chats.cleaned)
    found = formatted(run, params, chats, base)
    run.data(data.name, found.digest, spec=found.spec)
    return found


def formatted(run: Run, params: ChatParams, chats: Chats, base: Pretrained) -> Artifact:
    most = most_tokens(base)
    if most and params.context > most:
        raise DataError(f"chats.context is {params.context:,}, {base.name} reads {most:,} tokens; lower it")
    form = format_of(base, params.end)
    counts = Counter[str]()
    lengths = dict[str, list[int]]()
    splits = {
        split: _split(form, params, split, chats.splits.get(split, []), counts, lengths) for split in SPLITS
    }
    _check(params, splits["train"], counts)
    _log(run, params, splits, counts, lengths)
    run.picture("chat", _picture(form, splits["train"]))
    arrays = {name: array for split, one in splits.items() for name, array in one.arrays(split).items()}
    longest = max(len(chat) for one in splits.values() for chat in one.tokens)
    spec = DataSpec(
        shape=(longest,),
        dtype="int32",
        counts={split: len(one.tokens) for split, one in splits.items()},
        tokens=sum(map(len, splits["train"].tokens)),
    )
    meta = {
        "base": base.name,
        "base_digest": digest_of(base),
        "template": form.tokenizer.chat_template,
        "ends": list(form.ends),
    }
    return run.save("chats", spec, arrays, meta)


def _split(
    form: Format,
    params: ChatParams,
    split: str,
    chats: Sequence[Any],
    counts: "Counter[str]",
    lengths: dict[str, list[int]],
) -> Split:
    """Raises DataError that names the chat."""
    found = Split([], [], [])
    lengths[split] = []
    for number, chat in enumerate(chats, 1):
        messages = [{"role": role, "content": text} for role, text in chat]
        if params.system and messages[0]["role"] not in ("system", TEXT):
            messages.insert(0, {"role": "system", "content": params.system})
        try:
            tokens, answers = form.marked(messages)
        except DataError as error:
            raise DataError(f"chat {number} of the split {split}: {error}") from None
        lengths[split].append(len(tokens))
        if len(tokens) > params.context:
            counts[f"longer than the context, {params.longer.replace('_', ' ')}"] += 1
            tokens, answers = tokens[: params.context], answers[: params.context]
            if params.longer == "leave_out":
                continue
        if not any(answers[1:]):
            counts["no answer within the context, left out"] += 1
            continue
        text = "".join(one["content"] for one in messages if one["role"] in ("assistant", TEXT))
        found.tokens.append(tokens)
        found.answers.append(answers)
        found.bytes.append(len(text.encode()))
    return found


def _check(params: ChatParams, train: Split, counts: Mapping[str, int]) -> None:
    if not train.tokens:
        why = ", ".join(f"{what}: {n}" for what, n in counts.items()) or "the data have none"
        raise DataError(
            f"no chat is left to train on ({why}); raise `chats.context` ({params.context}) or give others"
        )


def _log(
    run: Run,
    params: ChatParams,
    splits: Mapping[str, Split],
    counts: Mapping[str, int],
    lengths: Mapping[str, list[int]],
) -> None:
    for what, n in counts.items():
        run.note(f"{n} of {sum(map(len, lengths.values()))} chats {what} ({params.context} tokens)")
        run.metric(f"data/{what.replace(', ', '_').replace(' ', '_')}", n)
    for split, one in splits.items():
        run.metrics(
            {
                f"data/{split}_chats": len(one.tokens),
                f"data/{split}_tokens": sum(map(len, one.tokens)),
                f"data/{split}_answer_tokens": sum(map(sum, one.answers)),
            }
        )
    lines = {
        split: (sorted(found), np.linspace(0, 1, len(found)).tolist())
        for split, found in lengths.items()
        if found
    }
    title = f"Tokens of a chat; the context is {params.context}"
    run.picture("lengths", figures.curves(lines, "tokens", "share of chats that are no longer", title))


def _picture(form: Format, train: Split) -> "Figure":
    """The first chat as the model reads it; what is learnt stands out."""
    from matplotlib.figure import Figure

    rows = list(_lines(form.tokenizer, train.tokens[0][:SHOWN_TOKENS], train.answers[0]))
    lines = 1 + max((line for line, *_ in rows), default=0)
    figure = Figure(figsize=(10, 0.22 * lines + 0.8), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, LINE)
    axes.set_ylim(lines, -1)
    for line, column, text, learnt in rows:
        axes.text(
            column,
            line,
            figures.drawable(text),
            family="DejaVu Sans Mono",
            fontsize=8,
            parse_math=False,
            color=figures.ACCENT if learnt else figures.SOFT,
            weight="bold" if learnt else "normal",
        )
    axes.set_title("A chat as the model reads it; the blue tokens are learnt", loc="left", fontsize=10)
    return figure


def _lines(tokenizer: Any, tokens: list[int], answers: list[bool]) -> Iterator[tuple[int, int, str, bool]]:
    """Line, column, text and whether it is learnt, for runs of tokens."""
    line = column = 0
    for token, learnt in zip(tokens, answers, strict=False):
        text = tokenizer.decode([token])
        shown = text.replace("\n", "\u21b5")
        if column and column + len(shown) > LINE:
            line, column = line + 1, 0
        yield line, column, shown, learnt
        column += len(shown)
        if text.endswith("\n"):
            line, column = line + 1, 0
