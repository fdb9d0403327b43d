"""A language model in GGUF as a folder of transformers."""

import hashlib
import logging
import os
import shutil
import struct
import warnings
from pathlib import Path

from overnight.data import digests
from overnight.data.pretrained import Pretrained
from overnight.errors import FAILURES, DataError, file_error, one_line
from overnight.locks import hold
from overnight.paths import state

FORM = "1"  # of what is written; another number writes it anew


def quiet() -> None:
    """Before the first import of transformers or bitsandbytes: no network, no line for each call."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def as_transformers(pretrained: Pretrained) -> Path:
    """The folder with config.json, safetensors and the tokenizer of a transformers or GGUF entry.

    A GGUF is made whole in float32 once and kept in .overnight/converted by its digest. Raises DataError.
    """
    place = pretrained.locate()
    if pretrained.form == "transformers":
        return place
    if pretrained.form != "gguf":
        raise DataError(
            f"{pretrained.called} is of the form {pretrained.form}; a language model is transformers or gguf"
        )
    name = hashlib.sha256(f"{FORM} {digests.sha256(place)}".encode()).hexdigest()[:16]
    folder = state() / "converted" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.with_suffix(".lock"), f"converting {pretrained.name}", wait=True):
        if not (folder / "config.json").is_file():
            _convert(place, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Whole or not at all."""
    quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        source = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except (*FAILURES, struct.error) as error:
        raise file_error(
            file, f"cannot be read as a language model of transformers: {one_line(error)}"
        ) from None
    # It was made whole, but is marked as quantised, and such a model cannot be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    os.replace(part, folder)
