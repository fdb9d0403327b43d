"""The message of a night: sent by each way, never longer than its time, and no address is ever printed."""

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from overnight.config import read, validate
from overnight.errors import ConfigError
from overnight.night.notify import Notify, main, send
from overnight.night.settings import NightValues
from overnight.orchestration.checks import load

SECRET = "https://hooks.example/T0/s3cr3t"


@pytest.fixture
def webhook():
    """(address, bodies that came, codes of the next answers) of a server on this machine."""
    received, answers = list[bytes](), list[int]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Silence."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", received, answers
    http.shutdown()
    thread.join()
    http.server_close()


def problems(tmp_path, text, *overrides):
    path = tmp_path / "night.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        validate(NightValues, *read(path, overrides))
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    "text",
    [
        f"notify: {SECRET}\n",
        f"notify: {{apprise: '{SECRET}'}}\n",
        f"notify: {{webhook: '{SECRET}'}}\n",
        f"notify: {{webhook: ['{SECRET}']}}\n",
        f"notify: {{command: curl {SECRET}}}\n",
        f"notify: {{command: [curl, '{SECRET}']}}\n",
        f"notify: {{command: {{curl: '{SECRET}'}}}}\n",
    ],
)
def test_an_address_in_a_config_is_refused_and_not_repeated(tmp_path, text):
    found = problems(tmp_path, text)
    assert "night.yaml:1: notify" in found
    assert "s3cr3t" not in found


def test_an_address_in_an_override_is_refused_and_not_repeated(tmp_path):
    found = problems(tmp_path, "seed: 1\n", f"notify.webhook={SECRET}")
    assert "write it to a file" in found
    assert "s3cr3t" not in found


def test_a_night_takes_a_price_and_ways_and_its_parts_do_not(tmp_path):
    path = tmp_path / "night.yaml"
    path.write_text(
        "flow: nightly\nprice_per_kwh: 0.31\nnotify: {command: notify-send overnight, timeout_s: 5}\n"
        "experiments: [{flow: vision, data: digits}]\n"
    )
    _, experiment = load(path)
    assert isinstance(experiment, NightValues)
    assert experiment.notify.command == ("notify-send", "overnight")
    assert "price_per_kwh" not in experiment.result_params()
    with pytest.raises(ConfigError, match="unknown key"):
        load(path, ["experiments.0.price_per_kwh=1"])


def test_nothing_is_sent_unless_it_is_asked_for():
    assert send(Notify(), "title", ["line"]) == []


def test_a_command_gets_the_text_and_what_it_prints_is_not_repeated(checkout):
    script = "import sys; open('got.txt', 'w').write(sys.stdin.read()); print('s3cr3t')"
    assert send(Notify(command=(sys.executable, "-c", script)), "title", ["one", "two"]) == [
        "message by command: sent"
    ]
    assert (checkout / "got.txt").read_text() == "title\none\ntwo"
    failing = Notify(command=(sys.executable, "-c", "print('s3cr3t'); exit(3)"))
    assert send(failing, "t", []) == ["message by command: not sent: it ended with exit code 3"]
    (missing,) = send(Notify(command=("no-such-command",)), "t", [])
    assert missing == "message by command: not sent: the command cannot be started: No such file or directory"


def test_a_command_that_hangs_ends_with_all_that_it_started(checkout):
    hanging = Notify(command=("sh", "-c", "sleep 60 & sleep 60"), timeout_s=0.2)
    assert send(hanging, "t", []) == ["message by command: not sent: it took longer than 0.2 s"]


def test_a_webhook_gets_json_from_a_process_of_its_own(checkout, webhook):
    address, received, _answers = webhook
    (checkout / "hook.txt").write_text(f"# mine\n{address}/s3cr3t\n")
    assert send(Notify(webhook="hook.txt"), "title", ["line"]) == ["message by webhook: sent"]
    assert json.loads(received[0])["text"] == "title\nline"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its file has no address"),
        ("http://127.0.0.1:1/s3cr3t", "the server of address 1 cannot be reached"),
        ("http://[s3cr3t", "the server of address 1 cannot be reached"),
        ("s3cr3t", "address 1 does not begin with https://"),
        ("{address}/s3cr3t", "the server of address 1 answered 404"),
        (None, "the file that notify.webhook names cannot be read"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_it(checkout, webhook, capsys, text, reason):
    address, _received, answers = webhook
    answers.append(404)
    if text is not None:
        (checkout / "hook.txt").write_text(text.format(address=address))
    assert main("webhook", "hook.txt", io.StringIO('{"title": "t", "lines": []}')) == 1
    assert capsys.readouterr().out == f"{reason}\n"


@pytest.mark.slow
def test_apprise_sends_to_every_address_and_names_those_that_it_does_not_know_by_number(checkout, webhook):
    address, received, _answers = webhook
    (checkout / "all.txt").write_text(f"{address.replace('http://', 'json://')}/s3cr3t\n")
    assert send(Notify(apprise="all.txt"), "title", ["line"]) == ["message by apprise: sent"]
    assert b"title" in received[0]
    (checkout / "all.txt").write_text("odd://s3cr3t\n")
    assert send(Notify(apprise="all.txt"), "title", []) == [
        "message by apprise: not sent: of its addresses apprise does not know number 1"
    ]
