"""Ask a server of a language model: somebody else's at an address, or one that lives as long as the step."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from overnight import Artifact, Params, Run, runtime_option, step
from overnight.errors import BadInput, ServiceError, Stopped
from overnight.gpu.card import find
from overnight.gpu.device_usage import device_of
from tasks.llm.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from tasks.llm.answers import Asked
    from tasks.llm.client import Client
    from tasks.llm.server import Served


class QuestionParams(Params):
    """What is asked, and how an answer is drawn."""

    prompts: Path | tuple[str, ...] = Field(
        description="the prompts, or a .txt with one a line, or a .jsonl with `prompt` or `messages`"
    )
    system: str = Field("", description="a system message before each prompt that has none")
    tokens: int = Field(256, ge=1, description="the most of an answer")
    temperature: float = Field(0.0, ge=0, le=2, description="0: the most probable token each time")
    parallel: int = Field(1, ge=1, le=64, description="prompts asked at once")

    @field_validator("prompts")
    @classmethod
    def _not_empty(cls, given: Path | tuple[str, ...]) -> Path | tuple[str, ...]:
        if not isinstance(given, Path) and not any(text.strip() for text in given):
            raise ValueError("expected at least one prompt, or the path of a .txt or .jsonl")
        return given


class AskParams(QuestionParams):
    """And how often and how long a server is asked."""

    timeout_s: float = runtime_option(120.0, "for a whole answer", gt=0)
    retries: int = runtime_option(
        5, "new tries of a request that failed, after longer and longer waits", ge=0
    )
    pause_s: float = runtime_option(
        1.0, "before the first new try; each further one waits twice as long", gt=0
    )


class EndpointParams(Params):
    """A server that runs already: NIM, Ollama, vLLM, llama-server, or a hosted one."""

    url: str = Field(description="of its OpenAI-compatible API, with /v1", pattern=r"^https?://\S+$")
    model: str = Field("", description="by its name there; the only one when left out")
    key_variable: str = Field("", description="the name of the environment variable that holds the key")
    unload: bool = runtime_option(False, "ask an Ollama to free the card at the end")
    ready_s: float = runtime_option(30.0, "how long to wait until it answers", ge=0)

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, given: str) -> str:
        if given and not (given.isidentifier() and given.isupper()):
            raise ValueError(
                "expected the name of an environment variable, such as NIM_API_KEY, never the key itself: "
                "configs are logged"
            )
        return given


class ServerParams(Params):
    """A server of the user's own, started and ended by the step: its command, with {port} and {key}."""

    command: tuple[str, ...] = Field(
        description="program and arguments; {port} and {key} stand for what the step chooses", min_length=1
    )
    model: str = Field("", description="by its name there; the only one when left out")
    ready_s: float = runtime_option(600.0, "how long to wait until it answers", ge=0)
    vram_mib: int | None = runtime_option(
        None, "MiB to lease: 0 for nothing; when left out the whole card, until its peak was measured"
    )

    @model_validator(mode="after")
    def _has_a_port(self) -> "ServerParams":
        if not any("{port}" in word for word in self.command):
            raise ValueError("command: write {port} where the port belongs, and {key} where the key does")
        return self


@step(reproducible=False)
def ask_endpoint(run: Run, params: EndpointParams, asked: AskParams) -> Artifact:
    """Ask a server that runs already.

    Out: artifact "answers", answers.jsonl with prompt, answer, tokens and seconds. Logs latency_p50_s,
    latency_p95_s, first_token_p50_s, tokens_per_s, ended_share, retries, errors/KIND, and MiB of the card
    before and after. Raises BadInput: a prompt file that cannot be read, a key that is not set;
    RequestFailed: a request failed after its last try, which is named.
    """
    key = os.environ.get(params.key_variable, "") if params.key_variable else ""
    if params.key_variable and not key:
        raise BadInput(
            f"key_variable: {params.key_variable} is not set here; export it in the shell that starts the "
            "run (and before `overnight up`, for runs of the night)"
        )
    from tasks.llm import answers

    prompts, before = prompts_of(asked), _card_mib()
    with client_of(run, params.url, key, asked) as client:
        served = client.wait_until_ready(params.ready_s)
        model = client.choose(params.model, served)
        try:
            found = ask_all(run, client, model, asked, prompts)
        finally:
            if params.unload:
                client.unload(model)
    _log_card(run, before)
    return answers.save(run, model, found, client.failures)


@step(gpu=True, uncapped=True, program=True, reproducible=False)
def ask_server(run: Run, params: ServerParams, asked: AskParams) -> Artifact:
    """Start a server of the user's own under the step's lease, ask it, and end it.

    Out and logs: as of ask_endpoint. Raises as ask_endpoint; BadInput: a command that cannot be started;
    OvernightError: the server ended by itself, with the end of its log.
    """
    from tasks.llm import answers, server

    prompts, before = prompts_of(asked), _card_mib()
    with (
        server.own_command(params.command, run.folder, _free_port()) as served,
        client_of(run, served.url, served.key, asked) as client,
    ):
        names = _ready(run, client, served, params.ready_s)
        model = client.choose(params.model, names)
        check = partial(server.check_alive, served, run.folder)
        found = ask_all(run, client, model, asked, prompts, check)
    _log_card(run, before)
    return answers.save(run, model, found, client.failures)


def client_of(run: Run, url: str, key: str, asked: AskParams) -> "Client":
    from tasks.llm.client import Client

    def check() -> None:
        if run.should_stop():
            raise Stopped("stopped while a server was asked")

    return Client(url, key, asked.timeout_s, asked.retries, asked.pause_s, check)


def _ready(run: Run, client: "Client", served: "Served", ready_s: float) -> list[str]:
    """The models of a server that was just started. Raises OvernightError when it ends or takes too long."""
    from tasks.llm.client import RequestFailed
    from tasks.llm.server import check_alive

    until = time.monotonic() + ready_s
    while True:
        check_alive(served, run.folder)
        try:
            return client.wait_until_ready(0)
        except RequestFailed as failure:
            if not failure.again or time.monotonic() > until:
                raise
        run.progress(0, 1, "waiting for the server")
        time.sleep(client.pause_s)


def prompts_of(asked: QuestionParams) -> list[Prompt]:
    """With the system message before each that has none."""
    prompts = read_prompts(asked.prompts)
    if not asked.system:
        return prompts
    system = {"role": "system", "content": asked.system}
    return [prompt if prompt[0]["role"] == "system" else [system, *prompt] for prompt in prompts]


def ask_all(
    run: Run,
    client: "Client",
    model: str,
    asked: QuestionParams,
    prompts: list[Prompt],
    check: Callable[[], None] = lambda: None,
) -> "list[Asked]":
    """Raises RequestFailed that names the prompt; the answers so far stay in the step's folder."""
    from tasks.llm.answers import Asked
    from tasks.llm.client import RequestFailed, Sampling

    sampling = Sampling(asked.tokens, asked.temperature, run.seed)
    found, part = list[Asked](), run.folder / "answers.jsonl"
    with ThreadPoolExecutor(asked.parallel) as pool, part.open("w", encoding="utf-8") as file:
        futures = [pool.submit(client.chat, model, prompt, sampling) for prompt in prompts]
        try:
            for prompt, future in zip(prompts, futures, strict=True):
                found.append(Asked(prompt, future.result()))
                file.write(found[-1].line())
                file.flush()
                run.progress(len(found), len(prompts), "prompts")
        except RequestFailed as failure:
            check()  # a server that has ended says more than the request
            place = f"prompt {len(found) + 1} of {len(prompts)}"
            kept = f"{len(found)} answers are in {part}"
            raise RequestFailed(failure.kind, f"{place}: {failure}; {kept}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _card_mib() -> int | None:
    """What the card holds now, by all programs; None without one."""
    with suppress(ServiceError):
        card = find(None)
        return None if card.virtual else device_of(card).used_mib(card, ())
    return None


def _log_card(run: Run, before: int | None) -> None:
    after = _card_mib()
    if before is not None and after is not None:
        run.metrics({"card_before_mib": before, "card_after_mib": after})
