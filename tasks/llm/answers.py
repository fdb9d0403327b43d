"""Answers of a language model: what is logged of them, and the artifact that holds them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from tasks.llm.client import Answer
from tasks.llm.prompts import Prompt
from tasks.shared import figures

SHOWN = 50  # answers on the page


@dataclass(frozen=True)
class Asked:
    prompt: Prompt
    answer: Answer

    def line(self) -> str:
        """As JSON, for answers.jsonl."""
        answer = self.answer
        row = {
            "messages": self.prompt,
            "answer": answer.text,
            "ended": answer.ended,
            "tokens": answer.tokens,
            "prompt_tokens": answer.prompt_tokens,
            "first_token_s": round(answer.first_token_s, 4),
            "seconds": round(answer.seconds, 4),
            "tries": answer.tries,
        }
        return json.dumps(row, ensure_ascii=False) + "\n"


def save(run: Run, model: str, found: Sequence[Asked], failures: "Counter[str]") -> Artifact:
    """Log the times, the failed tries by kind and a page; hand on answers.jsonl."""
    seconds = np.array([one.answer.seconds for one in found])
    first = np.array([one.answer.first_token_s for one in found])
    tokens = np.array([one.answer.tokens for one in found])
    ended = float(np.mean([one.answer.ended for one in found]))
    empty = sum(not one.answer.text.strip() for one in found)
    rate = tokens / np.maximum(seconds, 1e-9)
    run.metrics(
        {
            "latency_p50_s": float(np.median(seconds)),
            "latency_p95_s": float(np.quantile(seconds, 0.95)),
            "first_token_p50_s": float(np.median(first)),
            "tokens_per_s": float(np.median(rate)),
            "ended_share": ended,
            "empty_answers": empty,
            "retries": sum(failures.values()),
            **{f"errors/{kind.replace(' ', '_')}": count for kind, count in failures.items()},
        }
    )
    run.param("model", model)
    _pictures(run, model, seconds, first)
    _page(run, model, found)
    _note(run, model, found, failures, empty)
    lines = "".join(one.line() for one in found)
    files = {"answers.jsonl": lambda path: path.write_text(lines, encoding="utf-8")}
    return run.save("answers", DataSpec(rows=len(found)), None, {"model": model}, files)


def _note(run: Run, model: str, found: Sequence[Asked], failures: "Counter[str]", empty: int) -> None:
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(failures.items()))
    odd = f"; {empty} of them are empty" if empty else ""
    again = f"; tried again after {kinds}" if failures else ""
    run.note(f"{model}: {len(found)} answers{odd}{again}")


def _pictures(run: Run, model: str, seconds: np.ndarray, first: np.ndarray) -> None:
    order = list(range(1, len(seconds) + 1))
    lines = {"whole answer": (order, seconds.tolist()), "first token": (order, first.tolist())}
    run.picture("latency", figures.curves(lines, "prompt", "seconds", model))


def _page(run: Run, model: str, found: Sequence[Asked]) -> None:
    """Prompts and answers side by side, as a Markdown file."""
    rows = [
        f"## {i}. {_quoted(one.prompt[-1]['content'])}\n\n{one.answer.text.strip() or '*(empty)*'}\n"
        for i, one in enumerate(found[:SHOWN], 1)
    ]
    more = f"\nThe first {SHOWN} of {len(found)}; all are in answers.jsonl.\n" if len(found) > SHOWN else ""
    path = Path(run.folder) / "answers.md"
    path.write_text(f"# Answers of {model}\n\n" + "\n".join(rows) + more, encoding="utf-8")
    run.publish(path)


def _quoted(text: str) -> str:
    return " ".join(text.split())[:200]
