"""A pretrained model as the base of a tuning: loaded in as many bits as asked for, with adapters on it."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch

from overnight.data.pretrained import Pretrained
from overnight.errors import FAILURES, DataError, file_error, one_line
from overnight.files import read_json
from overnight.memory.architectures.language import Tuning, adapted, checkpointed, untrained
from tasks.llm.gguf import as_transformers, quiet
from tasks.llm.tune_params import TuneParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def digest_of(base: Pretrained) -> str:
    """Of the weights and how they are read, so that an adapter is never put on others."""
    return hashlib.sha256(json.dumps(base.identity(), sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_of(base: Pretrained) -> Any:
    """With the entry's template where the model has none. Raises DataError."""
    quiet()
    from transformers import AutoTokenizer

    folder = as_transformers(base)
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except FAILURES as error:
        raise file_error(folder, f"its tokenizer cannot be loaded: {one_line(error)}") from None
    found.chat_template = found.chat_template or base.template or None
    return found


def most_tokens(base: Pretrained) -> int | None:
    """That the model can read at once; None where its config does not say."""
    found = _config(base).get("max_position_embeddings")
    return int(found) if found else None


def outline(params: TuneParams, longest: int) -> Any:
    """The model to be trained, without its weights: the same tensors. Raises DataError."""
    tuning = _tuning(params, _config(params.base), longest)
    return _with_adapters(_float_norms(untrained(tuning), params), params, tuning)


def _tuning(params: TuneParams, config: dict[str, Any], longest: int) -> Tuning:
    return Tuning(
        model=params.base.name,
        config=config,
        method=params.method,
        bits=params.bits,
        batch=params.micro_batch or params.batch,
        sequence=longest,
        precision=params.weights_precision,
        checkpointing=params.checkpointing,
        rank=params.rank,
        targets=params.targets,
    )


def _config(base: Pretrained) -> dict[str, Any]:
    """Of the weights where they are here, else of the entry; nothing is downloaded. Raises DataError."""
    if not base.found():
        if base.config:
            return base.config
        raise DataError(
            f"{base.called}: is not here, and its entry has no `config`; write that of its config.json, or "
            f"`overnight weights fetch {base.name}`"
        )
    quiet()
    from transformers import AutoConfig

    place = base.locate()
    if place.is_dir():
        return read_json(place / "config.json")
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(
            place.parent, gguf_file=place.name, local_files_only=True
        ).to_dict()
    except (*FAILURES, struct.error) as error:
        raise file_error(
            place, f"cannot be read as a language model of transformers: {one_line(error)}"
        ) from None
    return found


class Base:
    """Frozen weights are loaded once; each `build` gives them fresh adapters."""

    def __init__(self, params: TuneParams, precision: str, device: torch.device) -> None:
        self.params, self.device = params, device
        self.dtype = torch.float32 if params.method == "full" else DTYPES[precision]
        self.folder = as_transformers(params.base)
        self.tuning = _tuning(params, read_json(self.folder / "config.json"), 1)
        self.model: Any = None
        self.adapters: Any = None

    def build(self) -> Any:
        """Raises DataError where the files are not what the model's code expects."""
        if self.params.method == "full":
            return self._load()
        if self.model is None:
            self.model = self._load()
        else:
            self.adapters.unload()
        self.adapters = _with_adapters(self.model, self.params, self.tuning)
        return self.adapters

    def _load(self) -> Any:
        model = load(self.folder, self.dtype, self.device, self.params.bits_of_base)
        if self.params.checkpointing:
            checkpointed(model)
        return _float_norms(model, self.params)


def load(folder: Path, dtype: torch.dtype, device: torch.device, bits: str = "") -> Any:
    """bits: nf4, int8, or empty for all of the dtype.

    Raises DataError: files that are damaged, or lack weights of the model, which would begin at random.
    """
    quiet()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    more = {"quantization_config": _quantisation(bits, dtype)} if bits else {}
    try:
        model, read = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    except (SafetensorError, *FAILURES) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise file_error(folder, f"the model cannot be loaded: {one_line(error)}") from None
    missing = sorted(read["missing_keys"])
    if missing:
        raise file_error(
            folder,
            f"the files lack {len(missing)} weights that its config.json, of the type "
            f"{model.config.model_type!r}, asks for, such as {missing[0]}; get the whole model, or mend it",
        )
    model.config.use_cache = False
    for module in model.modules():
        # On some processors an evaluation rearranges the weights, after which gradients through them are 0.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _quantisation(bits: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _float_norms(model: Any, params: TuneParams) -> Any:
    """Norms of a quantised model in float32; all other weights stay: a large vocabulary would double."""
    if params.method == "qlora":
        for name, module in model.named_modules():
            if "norm" in name.rpartition(".")[2].lower():
                module.float()
    return model


def _with_adapters(model: Any, params: TuneParams, tuning: Tuning) -> Any:
    if params.method == "full":
        return model
    for weight in model.parameters():
        weight.requires_grad_(False)
    return adapted(model, tuning, lora_alpha=params.alpha, lora_dropout=params.dropout)
