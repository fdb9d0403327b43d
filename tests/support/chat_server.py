"""A server of OpenAI's chat API whose answers fail in a given order, for tests of its clients."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "small"
DRIP_S = 0.2


@dataclass
class ChatServer:
    """faults: of the requests for an answer, in their order; whole answers after the last."""

    url: str
    faults: list[str]
    key: str = ""
    models: Sequence[str] = (MODEL,)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    unloaded: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def next_fault(self) -> str:
        with self.lock:
            return self.faults.pop(0) if self.faults else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    @property
    def chat(self) -> ChatServer:
        return self.server.chat

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        if self.authorized():
            self.send(200, {"object": "list", "data": [{"id": name} for name in self.chat.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/api/generate"):
            self.chat.unloaded.append(body)
            self.send(200, {})
        elif self.authorized():
            self.chat.asked.append(body)
            self.chat.headers.append(dict(self.headers))
            with suppress(OSError):  # a client that waited long enough has gone
                answer_with(self, self.chat.next_fault(), body, self.chat.ended)

    def authorized(self) -> bool:
        given, key = self.headers.get("authorization"), self.chat.key
        if not key or given == f"Bearer {key}":
            return True
        self.send(401, {"error": {"message": f"bad key {given}"}})
        return False

    def send(self, status: int, value: object, **headers: str) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.send_response(status)
        kind = "text/html" if isinstance(value, str) else "application/json"
        for name, given in {"content-type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), given)
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def chat_server(
    *faults: str, key: str = "", models: Sequence[str] = (MODEL,), port: int = 0
) -> Iterator[ChatServer]:
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    found = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1", list(faults), key, models)
    server.chat = found
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield found
    finally:
        found.ended.set()
        server.shutdown()
        server.server_close()


def answer_with(handler: Any, fault: str, body: dict[str, Any], ended: threading.Event) -> None:
    statuses = {"429": 429, "500": 500, "503": 503, "400": 400}
    if fault == "context":
        return handler.send(400, {"error": {"message": "the request exceeds the available context size"}})
    if fault in statuses:
        waits = {"retry_after": "0"} if fault == "429" else {}
        return handler.send(statuses[fault], {"error": {"message": f"fault {fault}"}}, **waits)
    if fault == "page":
        return handler.send(200, "<html>It works</html>")
    if fault == "hang up":
        handler.connection.shutdown(socket.SHUT_RDWR)
        return None
    text = f"Answer to {body['messages'][-1]['content']}"
    if fault == "plain":
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return handler.send(200, {"model": body["model"], "choices": [choice]})
    return stream(handler, fault, text, body, ended)


def stream(handler: Any, fault: str, text: str, body: dict[str, Any], ended: threading.Event) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.end_headers()
    model = "other" if fault == "another model" else body["model"]

    def part(value: object) -> None:
        line = value if isinstance(value, str) else json.dumps({"model": model, **value})
        handler.wfile.write(f"data: {line}\n\n".encode())
        handler.wfile.flush()

    words = [] if fault == "empty" else text.split(" ")
    for i, word in enumerate(words):
        part({"choices": [{"delta": {"content": word if i == 0 else f" {word}"}}]})
        if i == 1 and fault == "cut":
            return
        if i == 1 and fault == "silence":
            ended.wait()
        while fault == "drip" and not ended.wait(DRIP_S):
            part({"choices": [{"delta": {"content": "."}}]})
        if i == 1 and fault in ("bad JSON", "error"):
            part('{"choices": [' if fault == "bad JSON" else json.dumps({"error": {"message": "no memory"}}))
    part({"choices": [{"delta": {}, "finish_reason": "length" if fault == "limit" else "stop"}]})
    if fault != "no usage":
        part({"choices": [], "usage": {"completion_tokens": len(words), "prompt_tokens": 7}})
    part("[DONE]")
