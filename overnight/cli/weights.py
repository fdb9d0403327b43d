"""`overnight weights ls | fetch | verify | new`: pretrained weights, judged before they come."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from overnight.cli.command import JSON, SWITCH, Command, print_rows
from overnight.data.pretrained import Pretrained
from overnight.errors import BadInput, ConfigError
from overnight.gpu.card import Card

CONTEXT = 2048  # tokens that a verdict is about
FORMS = ("fp16", "int8", "nf4")  # in which transformers can hold weights, the best first


def _weights(arguments: argparse.Namespace) -> int:
    from overnight.data.pretrained import verify

    takes = {"ls": 0, "new": 1}.get(arguments.verb)
    if takes is None and not arguments.names:
        raise ConfigError(f"`overnight weights {arguments.verb}` takes names of weights")
    if takes is not None and len(arguments.names) != takes:
        raise ConfigError("`overnight weights ls` takes no name, `overnight weights new` one of the hub")
    if arguments.verb == "ls":
        return _list(_card(arguments), arguments.json)
    if arguments.verb == "new":
        return _new(arguments)
    if arguments.verb == "fetch":
        return max(_fetch(name, _card(arguments), arguments.anyway) for name in arguments.names)
    problems = [f"{name}: {problem}" for name in arguments.names for problem in verify(name)]
    print("\n".join(problems) or "every file is as its entry says")
    return 2 if problems else 0


def _card(arguments: argparse.Namespace) -> Card:
    from overnight.cli.fit import of_size
    from overnight.gpu.card import find

    return find() if arguments.card is None else of_size(arguments.card)


def _list(card: Card, as_json: bool) -> int:
    from overnight.data.pretrained import listing, load_entry

    rows = listing()
    for row in rows:
        row["on this card"] = verdict(load_entry(row["name"]), card)[0] if row["form"] else ""
    print_rows(rows, as_json)
    return 0


def _fetch(name: str, card: Card, anyway: bool) -> int:
    """3 where no form of it fits the card, before a byte is fetched."""
    from overnight.data.pretrained import fetch, load_entry

    entry = load_entry(name)
    said, fits = verdict(entry, card)
    if fits is False and not anyway and not entry.found():
        print(f"{name}: {said}. Nothing was fetched; --anyway fetches it")
        return 3
    print(f"{name}: {fetch(name)} ({said})")
    return 0


def _new(arguments: argparse.Namespace) -> int:
    """Write the entry, unless there is one."""
    from overnight.data import hub
    from overnight.files import atomic_write
    from overnight.paths import shown, weights

    (hub_id,) = arguments.names
    name = arguments.name or hub.name_of(hub_id)
    path = weights() / f"{name}.yaml"
    if path.exists():
        raise ConfigError(f"{shown(path)} is there already; give another --name, or remove it")
    values = hub.describe(hub_id, arguments.file, arguments.revision, arguments.base)
    said, fits = verdict(Pretrained.model_validate({"name": name, **values}), _card(arguments))
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, hub.text_of(values))
    size = sum(file["bytes"] for file in values["files"])
    print(f"{shown(path)}: {len(values['files'])} files, {size / 1e6:,.0f} MB, licence {values['licence']}")
    print(f"{said}; `overnight weights fetch {name}` gets them")
    return 3 if fits is False else 0


def verdict(entry: Pretrained, card: Card) -> tuple[str, bool | None]:
    """In words, and whether it can answer on the card in some form; None where that is not known."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(entry, Path(folder))
        if not model:
            return "memory not known", None
        try:
            return _judged(entry, model, card)
        except BadInput:
            return "memory not known", None


def _model(entry: Pretrained, folder: Path) -> str:
    """What tells its sizes: its own files, else the `config` of its entry; empty where nothing does."""
    if entry.form not in ("transformers", "gguf"):
        return ""
    for place in entry.found():
        ending = ".gguf" if entry.form == "gguf" else "config.json"
        found = next((path for path in sorted(place.iterdir()) if path.name.endswith(ending)), None)
        if found is not None:
            return str(found)
    if not entry.config:
        return ""
    (folder / "config.json").write_text(json.dumps(entry.config))
    return str(folder / "config.json")


def _judged(entry: Pretrained, model: str, card: Card) -> tuple[str, bool]:
    """Raises BadInput for a type whose memory no formula knows."""
    from overnight.cli.fit import constants
    from overnight.memory.architectures.inference import Serving, predict_inference, refusal

    budget, context = card.budget_mib, constants(card).context_mib
    as_given = entry.form == "gguf"
    values: dict[str, Any] = {"model": model, "context": CONTEXT}
    for way in ("f16",) if as_given else FORMS:
        serving = Serving.of(**values, way=way)
        found = predict_inference(serving, context)
        needed, mib = found.needed_mib, found.mib
        if as_given and model.endswith(".json"):  # not here: its size is that of its file
            more = sum(file.bytes or 0 for file in entry.files) / 2**20 - found.parts["weights"]
            needed, mib = needed + more, mib + more
        if needed <= budget:
            form = "as it is" if as_given else f"in {way}"
            return f"fits {form}: {mib / 1024:.1f} GB at {CONTEXT:,} tokens", True
    if as_given and model.endswith(".json"):
        return f"does not fit: needs {mib / 1024:.1f} GB of {budget / 1024:.1f} GB", False
    return f"does not fit: {refusal(serving, budget)}", False


COMMAND: Command = (
    _weights,
    "pretrained weights: list, fetch, verify, describe those of a hub",
    {
        **JSON,
        "verb": {
            "nargs": "?",
            "default": "ls",
            "choices": ("ls", "fetch", "verify", "new"),
            "help": "where they are and whether they fit (ls), download what is missing (fetch), compare "
            "with the digests (verify), or write an entry for a model of the hub (new)",
        },
        "names": {"nargs": "*", "metavar": "NAME", "help": "weights; for new the name of a model on the hub"},
        "--card": {"type": float, "metavar": "GB", "help": "judge for a card of this size"},
        "--anyway": {**SWITCH, "help": "with fetch: though it does not fit"},
        "--file": {"default": "", "metavar": "GGUF", "help": "with new: which of several .gguf files"},
        "--name": {"metavar": "NAME", "help": "with new: of the entry; by the model's when left out"},
        "--revision": {"default": "main", "help": "with new: a branch, tag or commit of the model"},
        "--base": {"default": "", "metavar": "NAME", "help": "with new: the entry of an adapter's base"},
    },
)
