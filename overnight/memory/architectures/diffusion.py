"""Memory of Stable Diffusion from its sizes: painting, and LoRA of its U-Net. Needs the extra `diffusion`.

Painting is text encoder(s), U-Net (twice the batch: with and without the prompt), decoder, one after the
other. offload "model": one of them on the card at a time; "sequential": the weights of one layer at a time.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from overnight.errors import BadInput
from overnight.memory.architectures import Question, trained, training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from overnight.memory.prediction import Constants, MemoryEstimate
    from overnight.memory.trace import Trace
    from overnight.training.recipe import Recipe

MIB = 2**20
TOKENS = 77  # of a prompt
SHRINK = 8  # side of a picture by side of its latents
CHANNELS = 4  # of latents
SIDES = {"sd-1.5": 512, "sdxl": 1024}
UNETS: dict[str, dict[str, Any]] = {
    "sd-1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXTS = {  # width, feed-forward width, layers, heads
    "sd-1.5": ((768, 3072, 12, 12),),
    "sdxl": ((768, 3072, 12, 12), (1280, 5120, 32, 20)),
}
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]


class ImageGeneration(Question):
    model: Literal["sd-1.5", "sdxl"] = "sd-1.5"
    method: Literal["infer", "lora"] = "infer"
    batch: int = Field(1, ge=1, le=1024)  # pictures at once
    size: int | None = Field(
        None, multiple_of=64, ge=64, le=8192
    )  # side in pixels; the model's own when left out
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    offload: Literal["none", "model", "sequential"] = "none"
    checkpointing: bool = False
    rank: int = Field(16, ge=1, le=1024)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method == "lora" and (self.offload != "none" or self.model != "sd-1.5"):
            raise ValueError(
                f"LoRA training is known of sd-1.5 without offload, "
                f"not of {self.model} with offload {self.offload!r}"
            )
        return self

    @property
    def side(self) -> int:
        return self.size or SIDES[self.model]


def predict_image_generation(
    painting: ImageGeneration, constants: "Constants | None" = None
) -> "MemoryEstimate":
    """The peak, whose `phase` is the net. Raises BadInput without the extra `diffusion`."""
    from overnight.memory.prediction import ASSUMED, MemoryEstimate, Unknown, predict, silence

    try:
        with silence():
            if painting.method == "lora":
                return predict(painting_recipe(painting), painting.batch, constants=constants or ASSUMED)
            return _painted(painting, constants or ASSUMED)
    except Unknown as error:
        return MemoryEstimate(painting.batch, unknown=str(error))
    except ImportError as error:
        raise BadInput(
            f"{error}; diffusion needs the extras llm and diffusion: make setup, "
            "or pip install 'overnight[llm,diffusion]'"
        ) from None


def _painted(painting: ImageGeneration, constants: "Constants") -> "MemoryEstimate":
    from overnight.memory.prediction import estimate, traced_calls

    def peak(trace: "Trace") -> "MemoryEstimate":
        return estimate(trace, painting.batch, "cuda", 0.0, constants)

    nets = _parts(painting)
    if painting.offload == "none":
        return peak(traced_calls(nets))
    found: list[MemoryEstimate] = []
    for name, (build, call) in nets.items():
        trace = traced_calls({name: (build, call)})
        if painting.offload == "model":
            found.append(peak(trace))
        else:
            found.append(_with(peak(trace.without("build")), _largest_leaf(build)))
    return max(found, key=lambda prediction: prediction.mib)


def _with(found: "MemoryEstimate", mib: float) -> "MemoryEstimate":
    names = ("mib", "low_mib", "high_mib", "needed_mib")
    parts = {**found.parts, "weights": found.parts.get("weights", 0.0) + mib}
    return replace(found, **{name: getattr(found, name) + mib for name in names}, parts=parts)


def _largest_leaf(build: "Callable[[], nn.Module]") -> float:
    import torch

    with torch.device("meta"):
        model = build()
    each = [sum(p.nbytes for p in m.parameters(recurse=False)) for m in model.modules()]
    return max(each) / MIB


def _parts(painting: ImageGeneration) -> "dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]]":
    """Name -> (build, call) of each net that painting calls."""
    import torch

    dtype = _dtype(painting)
    n, small = 2 * painting.batch, painting.side // SHRINK

    def unet(model: Any) -> Any:
        width = UNETS[painting.model]["cross_attention_dim"]
        added = {"text_embeds": torch.zeros(n, 1280, dtype=dtype), "time_ids": torch.zeros(n, 6, dtype=dtype)}
        return model(
            torch.zeros(n, CHANNELS, small, small, dtype=dtype),
            torch.zeros(n, dtype=torch.long),
            torch.zeros(n, TOKENS, width, dtype=dtype),
            added_cond_kwargs=added if painting.model == "sdxl" else None,
        )

    # the decoder of sdxl overflows in half precision, and runs in float32
    upcast = torch.float32 if painting.model == "sdxl" else dtype
    found: dict[str, Any] = {
        f"text encoder {i}": (
            functools.partial(_text, sizes, dtype),
            lambda m: m(torch.zeros(n, TOKENS, dtype=torch.long)),
        )
        for i, sizes in enumerate(TEXTS[painting.model], 1)
    }
    found["U-Net"] = (functools.partial(_unet, painting), unet)
    latents = functools.partial(torch.zeros, painting.batch, CHANNELS, small, small, dtype=upcast)
    found["decoder"] = (functools.partial(_vae, upcast), lambda m: m.decode(latents()))
    return found


def _dtype(painting: ImageGeneration) -> Any:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[painting.precision]


def _unet(painting: ImageGeneration) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNETS[painting.model]).to(_dtype(painting))


def _vae(dtype: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=CHANNELS,
        sample_size=512,
    ).to(dtype)


def _text(sizes: tuple[int, int, int, int], dtype: Any) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    hidden, inner, layers, heads = sizes
    config = transformers.CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=hidden,
    )
    config.vocab_size = 49408
    return transformers.CLIPTextModelWithProjection(config).to(dtype)


def painting_recipe(painting: ImageGeneration) -> "Recipe[Any]":
    """LoRA of the U-Net; frozen nets encode pictures and prompts within the step."""
    import torch

    from overnight.training.params import TrainParams

    return training(
        build=functools.partial(_trained, painting),
        example_batch=lambda n: {
            "pixels": torch.zeros(n, 3, painting.side, painting.side, dtype=_dtype(painting)),
            "tokens": torch.zeros(n, TOKENS, dtype=torch.long),
        },
        loss=lambda model, batch: (_denoised(model, batch), torch.tensor(1)),
        optimizer=lambda model: torch.optim.AdamW(trained(model)),
        eval_example=lambda: None,
        params=TrainParams(batch=painting.batch, micro_batch=painting.batch, precision=painting.precision),
    )


def _trained(painting: ImageGeneration) -> "nn.Module":
    import peft
    from torch import nn

    unet = _unet(painting).requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=painting.rank, target_modules=ADAPTED))
    for weight in trained(unet):
        weight.data = weight.data.float()  # adapters are trained in float32
    if painting.checkpointing:
        unet.enable_gradient_checkpointing()
    vae = _vae(_dtype(painting)).requires_grad_(False)
    text = _text(TEXTS[painting.model][0], _dtype(painting)).requires_grad_(False)
    return nn.ModuleDict({"unet": unet, "vae": vae, "text": text})


def _denoised(model: Any, batch: dict[str, "Tensor"]) -> "Tensor":
    import torch

    with torch.no_grad():
        latents = model["vae"].encode(batch["pixels"]).latent_dist.sample()
        states = model["text"](batch["tokens"]).last_hidden_state
    noise = torch.randn_like(latents)
    steps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    guess = model["unet"](latents + noise, steps, states).sample
    return torch.nn.functional.mse_loss(guess.float(), noise.float())
