"""Answers of llama.cpp to prompts, by a server that lives as long as the step."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from overnight.artifact import Artifact
from overnight.data.pretrained import Pretrained
from overnight.errors import DataError
from overnight.run import Run
from tasks.llm import answers, server
from tasks.llm.answers import Asked
from tasks.llm.endpoint import AskParams, QuestionParams, ask_all, client_of, prompts_of

WHOLE_S = 24 * 3600.0  # for an answer: a slow processor is no fault
READY_S = 60.0


def answer(run: Run, context: int, asked: QuestionParams, weights: Pretrained) -> Artifact:
    if weights.form != "gguf":
        raise DataError(
            f"{weights.called} is of the form {weights.form}; engine llama_cpp takes a gguf: choose engine "
            "transformers, or write a GGUF by the flow merge"
        )
    if weights.template:
        raise DataError(
            f"{weights.called} has a `template`, and llama.cpp uses the one in the file; choose engine "
            "transformers"
        )
    prompts, file, began = prompts_of(asked), weights.locate(), time.perf_counter()
    patient = AskParams(**asked.model_dump(), timeout_s=WHOLE_S, retries=0)
    with (
        server.llama_cpp(file, run.folder, context, asked.parallel, weights.name) as served,
        client_of(run, served.url, served.key, patient) as client,
    ):
        client.wait_until_ready(READY_S)
        run.metric("load_s", time.perf_counter() - began)
        check = partial(server.check_alive, served, run.folder)
        found = ask_all(run, client, weights.name, asked, prompts, check)
        peak_mib = _peak_mib(served.process.pid)
    run.metrics(_rates(found, min(asked.parallel, len(found))))
    if peak_mib:
        run.metric("server_peak_mib", peak_mib)
    return answers.save(run, weights.name, found, Counter())


def _rates(found: Sequence[Asked], parallel: int) -> dict[str, float]:
    """Tokens a second of all prompts that are asked at once."""
    prompt_s = sum(one.answer.first_token_s for one in found)
    answer_s = sum(one.answer.seconds - one.answer.first_token_s for one in found)
    prompt = sum(one.answer.prompt_tokens or 0 for one in found)
    made = sum(max(0, one.answer.tokens - 1) for one in found)
    rates = {"prompt_tokens_per_s": (prompt, prompt_s), "answer_tokens_per_s": (made, answer_s)}
    return {name: parallel * n / seconds for name, (n, seconds) in rates.items() if n and seconds > 0}


def _peak_mib(pid: int) -> float:
    """The most of the machine's memory that the process held; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
