"""Fine-tuning of language models as Recipes, from a config alone, without weights. Needs the extra `llm`.

Adapters go through peft; layers of 4 bits and the 8-bit optimizer are tensors of the bytes that bitsandbytes
holds (quantised.py). Encoders (BERT ...) are trained as classifiers, all else on the next token.
"""

import functools
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from overnight.errors import FAILURES, BadInput, one_line
from overnight.memory.architectures import Question, trained, training
from overnight.memory.architectures.shapes import ENCODERS, config_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from overnight.memory.prediction import Constants, MemoryEstimate
    from overnight.memory.trace import Trace
    from overnight.training.recipe import Recipe

EXTRA = "language models need the extra llm: make setup, or pip install 'overnight[llm]'"
HEADS = ("classifier", "pre_classifier", "score")
OTHERS = ("auto_map", "quantization_config", "architectures")  # of a config.json, that change no size
ALL_LINEAR, MOST_LAYERS = "all-linear", 1000
LEARNED = (  # places, not turned ones
    "gpt2", "opt", "bert", "roberta", "electra", "distilbert", "camembert", "xlm-roberta", "albert", "mpnet",
)  # fmt: skip
ALIKE = (  # layers
    "llama", "mistral", "qwen2", "cohere", "gemma", "phi", "opt", "gpt2", "gpt_neox", "bert", "roberta",
    "electra", "distilbert",
)  # fmt: skip


class Tuning(Question):
    model: str  # a name of shapes.MODELS, or a config.json
    config: dict[str, Any] = {}  # of a config.json, instead of the model's own
    method: Literal["full", "lora", "qlora"] = "full"
    bits: Literal["nf4", "int8"] = "nf4"  # of the frozen weights, of qlora
    batch: int = Field(1, ge=1, le=2**16)  # sequences on the card at once
    sequence: int = Field(512, ge=1, le=2**20)  # tokens of each
    # of the weights; amp: weights fp32, arithmetic bf16
    precision: Literal["bf16", "fp16", "fp32", "amp"] = "bf16"
    checkpointing: bool = False  # keep a layer's input alone and compute the rest again in the backward pass
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "sgd"] = "adamw"
    accumulate: int = Field(1, ge=1)  # micro-batches in an optimizer step
    rank: int = Field(16, ge=1, le=4096)
    targets: str = ALL_LINEAR  # layers that adapters go to: all-linear, or names with commas between
    layers: int | None = Field(None, ge=1, le=MOST_LAYERS)  # fewer layers than the model has

    @property
    def kind(self) -> str:
        return str(self.values["model_type"])

    @property
    def values(self) -> dict[str, Any]:
        """Raises BadInput."""
        return self.config or config_of(self.model)

    @property
    def encoder(self) -> bool:
        return self.kind in ENCODERS


def language_recipe(tuning: Tuning) -> "Recipe[Any]":
    """Raises BadInput for an unknown model."""
    import torch

    from overnight.training.params import TrainParams

    _check_sequence(tuning)
    _check_build(tuning)
    batch = tuning.batch * min(2, tuning.accumulate)  # two micro-batches cost as much as many
    precision = {"amp": "bf16"}.get(tuning.precision, "fp32")
    params = TrainParams(batch=batch, micro_batch=tuning.batch, precision=precision)
    return training(
        build=functools.partial(_model, tuning),
        example_batch=functools.partial(_example, tuning),
        loss=lambda model, batch: (model(**batch).loss, torch.tensor(1)),
        optimizer=lambda model: _optimizer(tuning, trained(model)),
        params=params,
    )


def predict_language(tuning: Tuning, constants: "Constants | None" = None) -> "MemoryEstimate":
    """`unknown` is set for a model that cannot be traced; raises BadInput for nonsense."""
    from overnight.memory.prediction import ASSUMED, estimated

    return estimated(lambda: traced_language(tuning), tuning.batch, "cuda", 0.0, constants or ASSUMED)


def traced_language(tuning: Tuning) -> "Trace":
    """Of layers that are alike few are traced. Raises Unknown and BadInput."""
    from overnight.memory.architectures.layers import deep
    from overnight.memory.prediction import silence, traced

    def at(layers: int | None) -> "Trace":
        return traced(language_recipe(tuning.model_copy(update={"layers": layers})), tuning.batch, "cuda")

    with silence():
        count = _layers(tuning)
        return deep(at, count) if count else at(tuning.layers)


def _layers(tuning: Tuning) -> int:
    """How many, where they are all alike; else 0."""
    config = _config(tuning)
    mixed = len(set(getattr(config, "layer_types", None) or [1])) > 1
    return int(config.num_hidden_layers) if tuning.kind in ALIKE and not mixed else 0


def _check_sequence(tuning: Tuning) -> None:
    most = getattr(_config(tuning), "max_position_embeddings", None)
    if tuning.kind in LEARNED and most and tuning.sequence > most:
        raise BadInput(
            f"model {tuning.model!r} has places for {most} tokens, "
            f"a sequence of {tuning.sequence} is longer; give --sequence {most} or less"
        )


def _check_build(tuning: Tuning) -> None:
    """Raises BadInput where the model, or peft, does not take the values; one layer tells."""
    import torch

    try:
        with torch.device("meta"):
            _model(tuning.model_copy(update={"layers": 1}))
    except ImportError as error:
        raise BadInput(f"{error}; {EXTRA}") from None
    except (ArithmeticError, *FAILURES) as error:
        what = f"model {tuning.model!r} with method {tuning.method!r}"
        raise BadInput(f"{what} cannot be built: {one_line(error)}") from None


def _model(tuning: Tuning) -> "nn.Module":
    model = untrained(tuning)
    found: nn.Module = model if tuning.method == "full" else adapted(model, tuning)
    return found


def untrained(tuning: Tuning) -> Any:
    """The model before it gets adapters, with random weights; of qlora in `bits`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    if not tuning.encoder:
        auto = transformers.AutoModelForCausalLM
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(tuning.precision, torch.float32)
    model = auto.from_config(_config(tuning), attn_implementation="sdpa").to(dtype)
    model.config.use_cache = False
    if tuning.method == "qlora":
        from overnight.memory.architectures.quantised import packed

        packed(model, tuning.bits, spared=("lm_head", *HEADS))
    if tuning.checkpointing:
        checkpointed(model)
    return model


def checkpointed(model: Any) -> None:
    """Keep a layer's input alone, and compute the rest again in the backward pass."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def _config(tuning: Tuning) -> Any:
    """Raises BadInput for a type or a value that transformers does not take."""
    values = tuning.values
    try:
        import transformers
        from huggingface_hub.errors import StrictDataclassError

        known = {name: value for name, value in values.items() if name not in ("model_type", *OTHERS)}
        config = transformers.AutoConfig.for_model(values["model_type"], **known)
    except ImportError as error:
        raise BadInput(f"{error}; {EXTRA}") from None
    except (ArithmeticError, *FAILURES, StrictDataclassError) as error:
        raise BadInput(f"model {tuning.model!r}: {one_line(error)}") from None
    if tuning.layers:
        config.num_hidden_layers = tuning.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: tuning.layers]
    return config


def adapted(model: Any, tuning: Tuning, **more: Any) -> Any:
    """The model with adapters, which alone are trained; more: values of peft's LoraConfig.

    Raises BadInput for targets that the model does not have.
    """
    import peft

    if tuning.checkpointing:
        # else no layer below the first adapter requires gradients, and none is checkpointed
        model.enable_input_require_grads()
    targets: Any = [name.strip() for name in tuning.targets.split(",")]
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if tuning.encoder else "CAUSAL_LM",
        r=tuning.rank,
        target_modules=ALL_LINEAR if tuning.targets == ALL_LINEAR else targets,
        exclude_modules=list(HEADS) if tuning.encoder else None,  # trained in full by themselves
        **more,
    )
    if tuning.targets != ALL_LINEAR:
        _check_targets(model, targets)
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise BadInput(f"targets {tuning.targets!r}: {one_line(error)}") from None


def _check_targets(model: Any, targets: list[str]) -> None:
    """Raises BadInput for names of layers that the model does not have: peft takes the others alone."""
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [name for name in targets if name.rpartition(".")[2] not in there]
    if missing:
        raise BadInput(f"targets {', '.join(map(repr, missing))} not found in the base model")


def _example(tuning: Tuning, n: int) -> "dict[str, Tensor]":
    import torch

    tokens = (n, tuning.sequence)
    shapes = {"input_ids": tokens, "attention_mask": tokens, "labels": (n,) if tuning.encoder else tokens}
    return {name: torch.zeros(shape, dtype=torch.long) for name, shape in shapes.items()}


def _optimizer(tuning: Tuning, weights: "list[Tensor]") -> Any:
    import torch

    if tuning.optimizer == "adamw8bit":
        from overnight.memory.architectures.quantised import AdamW8bit

        return AdamW8bit(weights)
    kinds = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor, "sgd": torch.optim.SGD}
    return kinds[tuning.optimizer](weights, lr=1e-4)
