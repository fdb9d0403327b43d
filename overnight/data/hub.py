"""An entry of weights out of a model hub's own list of files, at a fixed commit, with the hub's digests."""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from overnight.data.download import download
from overnight.data.pretrained import INDEX, PICKLES, load_entry, names
from overnight.errors import ConfigError, DataError, did_you_mean
from overnight.files import file_sha256, read_json

HUB = "https://huggingface.co"
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NEEDED = re.compile(  # of a folder of transformers or an adapter, beside its weights
    r"(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|vocab|preprocessor_config|processor_config|chat_template)\.json|merges\.txt|vocab\.txt"
    r"|chat_template\.jinja|(tokenizer|spiece|sentencepiece\.bpe)\.model|.*\.safetensors(\.index\.json)?"
)
CONFIG = (  # of a config.json: what decides the memory of the model
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip
SMALL = 64 * 10**6  # bytes of a file whose digest the hub does not list: it is fetched to be hashed


def describe(hub_id: str, file: str = "", revision: str = "main", base: str = "") -> dict[str, Any]:
    """The values of an entry for a model of the hub (`$HF_ENDPOINT`, else huggingface.co).

    file: which .gguf, where there are several; base: of an adapter, the name of its base's entry. Raises
    DataError: no such model, one with pickled weights or code of its own alone, one whose terms must be
    accepted first; ConfigError: several .gguf, a base without an entry.
    """
    if not ID.fullmatch(hub_id):
        raise ConfigError(f"{hub_id!r} is no name of a model on a hub; write it as owner/name")
    found = _json(f"{_hub()}/api/models/{hub_id}/revision/{quote(revision)}?blobs=true", hub_id)
    commit = str(found.get("sha") or "")
    siblings = [one for one in found.get("siblings") or [] if isinstance(one, dict)]
    files = {str(one["rfilename"]): one for one in siblings if "rfilename" in one}
    outside = any(name.startswith("/") or ".." in name.split("/") for name in files)
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not files or outside:
        raise DataError(f"{_hub()}: what it answers about {hub_id} is no description of a model")
    if found.get("gated"):
        raise DataError(
            f"{hub_id} is gated: its terms must be accepted at {HUB}/{hub_id}. Do so, get its files by hand, "
            f"put them into weights/{name_of(hub_id)}/ and write weights/{name_of(hub_id)}.yaml with `terms`"
        )
    form, wanted = _wanted(hub_id, files, file)
    place = f"{_hub()}/{hub_id}/resolve/{commit}"
    listed = [_file(place, name, files[name]) for name in wanted]
    card = _mapping(found.get("cardData"))
    values: dict[str, Any] = {
        "form": form,
        "licence": _text(card.get("license")) or "not stated",
        "homepage": f"{HUB}/{hub_id}",
        "about": _about(hub_id, file, found),
        "revision": commit,
        "files": listed,
    }
    config = _config(place, hub_id, files)
    if config:
        values["config"] = config
    if form == "adapter":
        values["base"] = _base(place, hub_id, base)
    return values


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def name_of(hub_id: str) -> str:
    """Of its entry, when none is given."""
    return re.sub(r"\W+", "_", hub_id.rpartition("/")[2]).strip("_").lower()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _about(hub_id: str, file: str, found: dict[str, Any]) -> str:
    task = found.get("pipeline_tag")
    return f"{hub_id}{f' ({file})' if file else ''}{f', {task}' if task else ''}"


def _json(url: str, hub_id: str) -> dict[str, Any]:
    """Raises DataError where there is no answer, or no JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "answer.json"
        try:
            download(url, target, progress=_silent)
        except DataError as error:
            gone = re.search(r"answers (401|403|404)\b", str(error))
            if gone is None:
                raise
            raise DataError(
                f"{_hub()} answers {gone[1]}: there is no model {hub_id}, or it is private; check its name"
            ) from None
        found = read_json(target)
    if not found:
        raise DataError(f"{url}: answers no JSON object; is HF_ENDPOINT the address of a hub?")
    return found


def _silent(_what: str, _done: int, _total: int | None) -> None:
    """Show no progress."""


def _wanted(hub_id: str, files: Iterable[str], file: str) -> tuple[str, list[str]]:
    """(form, the files that belong to it). Raises DataError, or ConfigError for a choice that is missing."""
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if file or (ggufs and "config.json" not in files):
        return "gguf", [_chosen(hub_id, ggufs, file)]
    form = next((form for form, index in INDEX.items() if index in files and form != "transformers"), "")
    form = form or ("transformers" if "config.json" in files else "")
    if not form:
        raise DataError(f"{hub_id} has no config.json, model_index.json, adapter_config.json or .gguf")
    wanted = sorted(name for name in files if _belongs(name, form))
    if not any(name.endswith(".safetensors") for name in wanted):
        pickled = [name for name in files if name.endswith(PICKLES)]
        have = f"only {', '.join(pickled[:3])}, which can run code when opened" if pickled else "no weights"
        raise DataError(f"{hub_id} has {have}; choose a model with .safetensors or .gguf")
    return form, wanted


def _belongs(name: str, form: str) -> bool:
    """Weights in other precisions (`model.fp16.safetensors`) are left out."""
    folder, _, own = name.rpartition("/")
    variant = own.count(".") > 1 and not own.endswith(".safetensors.index.json")
    if form != "diffusers":
        return not folder and not (variant and own.endswith(".safetensors")) and bool(NEEDED.fullmatch(own))
    kept = own.endswith((".json", ".txt", ".model")) or (own.endswith(".safetensors") and not variant)
    return kept and (bool(folder) or own == INDEX["diffusers"])


def _chosen(hub_id: str, ggufs: list[str], file: str) -> str:
    if file in ggufs or (not file and len(ggufs) == 1):
        return file or ggufs[0]
    near = did_you_mean(file, ggufs) if file else ""
    names = ", ".join(ggufs) or "none"
    raise ConfigError(f"{hub_id} has {len(ggufs)} .gguf files{near or ':'} choose one by --file: {names}")


def _file(place: str, name: str, listed: dict[str, Any]) -> dict[str, Any]:
    """With the digest that the hub lists, else that of the file itself. Raises DataError."""
    url, large = f"{place}/{quote(name)}", _mapping(listed.get("lfs"))
    size = _number(large.get("size")) or _number(listed.get("size"))
    if re.fullmatch(r"[0-9a-f]{64}", str(large.get("sha256"))) and size:
        return {"path": name, "url": url, "bytes": size, "sha256": str(large["sha256"])}
    if size > SMALL:
        raise DataError(f"{url}: the hub lists no sha256 of this file of {size / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        download(url, target, size=size or None, progress=_silent)
        return {"path": name, "url": url, "bytes": target.stat().st_size, "sha256": file_sha256(target)}


def _config(place: str, hub_id: str, files: Iterable[str]) -> dict[str, Any]:
    """Raises DataError for a model that needs code of its own."""
    if "config.json" not in files:
        return {}
    found = _json(f"{place}/config.json", hub_id)
    if "auto_map" in found:
        raise DataError(f"{hub_id} needs code of its own (`auto_map`), which is not run; choose another")
    found = found.get("text_config") or found
    return {key: found[key] for key in CONFIG if found.get(key) is not None}


def _base(place: str, hub_id: str, base: str) -> str:
    """Raises ConfigError where the base of an adapter has no entry."""
    wanted = str(_json(f"{place}/adapter_config.json", hub_id).get("base_model_name_or_path") or "unknown")
    known = {name: load_entry(name).homepage for name in names()}
    found = base or next((name for name, page in known.items() if page == f"{HUB}/{wanted}"), "")
    if found not in known:
        raise ConfigError(
            f"{hub_id} is an adapter of {wanted}, which has no entry; `overnight weights new {wanted}` "
            "first, or name its entry by --base"
        )
    return found


def text_of(values: dict[str, Any]) -> str:
    """The entry as yaml."""
    import yaml

    plain = json.loads(json.dumps(values))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
