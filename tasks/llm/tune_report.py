"""What a tuned model answers beside its base, and beside the truth."""

from dataclasses import dataclass
from typing import Any

from overnight.run import Run
from overnight.training.recipe import Scores
from tasks.llm.generate import Generated


@dataclass(frozen=True)
class Questions:
    """prompts and truths: token ids; ends: tokens that end an answer; tokens: the most of an answer."""

    prompts: list[list[int]]
    truths: list[list[int]]
    ends: list[int]
    tokens: int


@dataclass(frozen=True)
class Taken:
    """scores: on val, empty without one; answers: to the questions, in their order."""

    scores: Scores
    answers: list[Generated]


def report(run: Run, tokenizer: Any, questions: Questions, before: Taken, after: Taken) -> None:
    """answers.md: each prompt with the true answer, the base's and the tuned model's."""
    if not questions.prompts:
        return
    columns = (questions.prompts, questions.truths, before.answers, after.answers)
    parts = [_section(tokenizer, number, *row) for number, row in enumerate(zip(*columns, strict=True), 1)]
    path = run.folder / "answers.md"
    path.write_text("# Answers before and after\n\n" + "\n".join(parts), encoding="utf-8")
    run.publish(path)


def _section(
    tokenizer: Any, number: int, prompt: list[int], truth: list[int], before: Generated, after: Generated
) -> str:
    shown = {
        "prompt": tokenizer.decode(prompt),
        "truth": tokenizer.decode(truth, skip_special_tokens=True),
        "before" + _open(before): tokenizer.decode(before.ids, skip_special_tokens=True),
        "after" + _open(after): tokenizer.decode(after.ids, skip_special_tokens=True),
    }
    rows = [f"- **{name}**: {_one_line(text)}" for name, text in shown.items()]
    return "\n".join([f"## {number}", "", *rows, ""])


def _open(answer: Generated) -> str:
    return "" if answer.ended else " (cut: it does not end)"


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "*(empty)*"
