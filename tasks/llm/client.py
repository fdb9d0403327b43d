"""A client of servers that speak OpenAI's chat API: llama.cpp, Ollama, vLLM, NIM, and the hosted ones.

What may pass by itself is tried again: 429, 5xx, no connection, silence, a stream that breaks off, an answer
that is no JSON. What will not is an error at once: a refused key, an unknown model, a refused request.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from overnight.errors import OvernightError, did_you_mean, one_line
from tasks.llm.prompts import Prompt

T = TypeVar("T")
LOCAL = ("127.0.0.1", "localhost", "::1")
LONGEST_WAIT_S = 120.0  # before a new try, whatever the server asks for
POLL_S = 0.2


class RequestFailed(OvernightError):
    """kind: in a word or a status; again: whether a new try may help; wait_s: what the server asks for."""

    def __init__(self, kind: str, said: str, again: bool = False, wait_s: float = 0.0) -> None:
        self.kind, self.again, self.wait_s = kind, again, wait_s
        super().__init__(said)


@dataclass(frozen=True)
class Answer:
    """ended: by the model, not by the limit of tokens.

    tokens: as the server counts them, else the parts of its stream.
    """

    text: str
    ended: bool
    tokens: int
    prompt_tokens: int | None
    first_token_s: float
    seconds: float
    tries: int = 1


@dataclass(frozen=True)
class Sampling:
    """tokens: the most of an answer; temperature 0: the most probable token each time."""

    tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


class Client:
    """url: with its /v1; timeout_s: for a whole answer. Each failed try is counted in `failures` by its kind.

    check: called while waiting, and at each part of an answer; what it raises ends both. Raises
    RequestFailed: a url that is none, a key that no header can carry.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        timeout_s: float = 120.0,
        retries: int = 5,
        pause_s: float = 1.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.url, self.timeout_s, self.retries, self.pause_s = url.rstrip("/"), timeout_s, retries, pause_s
        self.check = check
        self.failures = Counter[str]()
        self._key = key
        if key and not (key.isascii() and key.isprintable() and key == key.strip()):
            said = "the key holds a line end, a space at an end, or a character beyond ASCII; set it anew"
            raise RequestFailed("bad key", f"{self.url}: {said}")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            host = urlsplit(url).hostname
        except ValueError as error:
            raise RequestFailed("bad address", f"{self.url}: {one_line(error)}") from None
        self._http = httpx.Client(headers=headers, timeout=timeout_s, trust_env=host not in LOCAL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_until_ready(self, ready_s: float) -> list[str]:
        """The names of the models it serves. Raises RequestFailed when it does not answer in time."""
        until = time.monotonic() + ready_s
        while True:
            try:
                return self._models()
            except RequestFailed as failure:
                if not failure.again or time.monotonic() > until:
                    raise
            self._wait(self.pause_s)

    def choose(self, model: str, served: list[str]) -> str:
        """The served model of that name, or the only one. Raises RequestFailed that lists them."""
        known = {_plain(name): name for name in served}
        if model and _plain(model) in known:
            return known[_plain(model)]
        if not model and len(served) == 1:
            return served[0]
        near = did_you_mean(model, served) if model else ""
        asked = (
            f"serves no model {model!r}{near}" if model else "serves several models, or none; give `model`"
        )
        raise RequestFailed("unknown model", f"{self.url} {asked}: it has {', '.join(served) or 'none'}")

    def chat(
        self, model: str, prompt: Prompt, sampling: Sampling, show: Callable[[str], None] = lambda _: None
    ) -> Answer:
        """show: takes each part of the answer as it comes. Raises RequestFailed after the last try."""
        for tries in range(1, self.retries + 2):
            try:
                return self._chat(model, prompt, sampling, tries, show)
            except RequestFailed as failure:
                self.failures[failure.kind] += 1
                if not failure.again or tries > self.retries:
                    raise RequestFailed(failure.kind, f"{failure} (try {tries})", failure.again) from None
                self._wait(min(LONGEST_WAIT_S, max(failure.wait_s, self.pause_s * 2 ** (tries - 1))))
        raise AssertionError("every try returns or raises")

    def unload(self, model: str) -> None:
        """Ask an Ollama to free the card now; it keeps a model for five minutes otherwise."""
        place = f"{self.url.removesuffix('/v1')}/api/generate"
        with suppress(httpx.HTTPError):
            self._http.post(place, json={"model": model, "keep_alive": 0})

    def _models(self) -> list[str]:
        response = self._sent(lambda: self._http.get(f"{self.url}/models"))
        if response.status_code != httpx.codes.OK:
            raise self._refused(response)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            said = f"{self.url}/models answers no list of models; is this the address of the API, with /v1?"
            raise RequestFailed("wrong JSON", said) from None

    def _chat(
        self, model: str, prompt: Prompt, sampling: Sampling, tries: int, show: Callable[[str], None]
    ) -> Answer:
        body = {
            "model": model,
            "messages": prompt,
            "max_tokens": sampling.tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.monotonic()

        def ask() -> Answer:
            with self._http.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise self._refused(response)
                return self._answer(response, model, started, tries, show)

        return self._sent(ask)

    def _sent(self, ask: Callable[[], T]) -> T:
        """What `ask` returns; what httpx raises becomes RequestFailed."""
        try:
            return ask()
        except httpx.TimeoutException:
            raise self._slow() from None
        except (httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise RequestFailed("cut", f"{self.url}: the answer broke off: {one_line(error)}", True) from None
        except httpx.TransportError as error:
            said = f"{self.url}: cannot be reached: {one_line(error)}; is the server running?"
            raise RequestFailed("no connection", said, True) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise RequestFailed("bad address", f"{self.url}: {one_line(error)}") from None

    def _slow(self) -> RequestFailed:
        said = (
            f"{self.url}: no whole answer in {self.timeout_s:g} s; raise timeout_s, or ask for fewer tokens"
        )
        return RequestFailed("timeout", said, True)

    def _refused(self, response: httpx.Response) -> RequestFailed:
        """By the status, with what the server says about it, without the key."""
        status = response.status_code
        answer = one_line(response.text)
        answer = answer.replace(self._key, "...") if self._key else answer
        advice = {
            401: "; give the name of the variable that holds the key in key_variable",
            403: "; this key may not use it",
            404: "; is this the address of the API, with /v1?",
        }.get(status, "")
        again = status in (408, 409, 425, 429) or status >= 500
        said = f"{self.url} answers {status}: {answer}{advice}"
        return RequestFailed(str(status), said, again, _retry_after(response))

    def _answer(
        self, response: httpx.Response, model: str, started: float, tries: int, show: Callable[[str], None]
    ) -> Answer:
        """Raises RequestFailed for one that is no JSON, not whole, empty of choices, or another model's."""
        text, parts, first, finish, usage = "", 0, 0.0, None, dict[str, Any]()
        for part in self._parts(response):
            self.check()
            if time.monotonic() - started > self.timeout_s:
                raise self._slow()
            self._check_model(model, part)
            usage = part.get("usage") or usage
            for choice in part.get("choices") or []:
                said = (choice.get("delta") or choice.get("message") or {}).get("content") or ""
                first = first or (time.monotonic() - started if said else 0.0)
                parts += bool(said)
                text += said
                show(said)
                finish = choice.get("finish_reason") or finish
        if finish is None:
            raise RequestFailed("cut", f"{self.url}: the answer broke off after {len(text)} characters", True)
        seconds = time.monotonic() - started
        tokens = int(usage.get("completion_tokens") or parts)
        text = text.encode(errors="replace").decode()  # half a character cannot be written to a file
        return Answer(
            text, finish == "stop", tokens, usage.get("prompt_tokens"), first or seconds, seconds, tries
        )

    def _parts(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        """Of a stream of events, or the one of a server that does not stream."""
        if "event-stream" not in response.headers.get("content-type", ""):
            yield self._json(response.read().decode(errors="replace"))
            return
        for line in response.iter_lines():
            name, _, value = line.partition(":")
            if name == "data" and value.strip() != "[DONE]":
                yield self._json(value)

    def _json(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            said = f"{self.url}: answers {text.strip()[:60]!r}, which is no JSON object"
            raise RequestFailed("wrong JSON", said, True)
        if found.get("error"):  # some servers write `"error": null` into every answer
            raise RequestFailed("error", f"{self.url}: {one_line(found['error'])}", True)
        if not _has_form(found):
            said = f"{self.url}: answers {text.strip()[:60]!r}, which is no answer of OpenAI's chat API"
            raise RequestFailed("wrong JSON", said, True)
        return found

    def _check_model(self, model: str, part: dict[str, Any]) -> None:
        given = part.get("model")
        if given and _plain(str(given)) != _plain(model):
            raise RequestFailed("another model", f"{self.url}: {given!r} answered, {model!r} was asked")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check()
            time.sleep(min(POLL_S, seconds))


def _has_form(part: dict[str, Any]) -> bool:
    """Whether choices, their texts and the numbers of tokens are of the types that the API says."""
    choices, usage = part.get("choices") or [], part.get("usage") or {}
    if not isinstance(choices, list) or not isinstance(usage, dict):
        return False
    counts = (usage.get("completion_tokens"), usage.get("prompt_tokens"))
    return all(map(_has_text, choices)) and all(isinstance(n, int | None) for n in counts)


def _has_text(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    message = choice.get("delta") or choice.get("message") or {}
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)


def _plain(name: str) -> str:
    """A model's name without the tag that Ollama adds, and of a file its own name."""
    plain = name.removesuffix(":latest")
    return plain.rpartition("/")[2] if plain.endswith(".gguf") else plain


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 where the server names none, or a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
