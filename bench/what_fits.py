"""What fits cards of 8 to 24 GB: makes docs/what-fits.md.

`python -m bench.what_fits [--write | --check] [--only WORD]`

Every figure is predicted, none is measured: no card is needed and nothing is downloaded. --check ends with 1
where the committed page says something else; the versions in its head may differ.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench._fit_recipes import NetParams, atari_recipe, boxes, graph
from overnight.gpu.card import RESERVE_MIB
from overnight.gpu.cuda_context import UNMEASURED_MIB
from overnight.memory.architectures.diffusion import ImageGeneration, predict_image_generation
from overnight.memory.architectures.inference import Serving, layers_that_fit, predict_inference
from overnight.memory.architectures.language import Tuning, predict_language
from overnight.memory.prediction import MemoryEstimate, predict, silence

PAGE = Path(__file__).resolve().parent.parent / "docs" / "what-fits.md"
CARDS, GIB = (8, 10, 12, 16, 24), 1024
LIBRARIES = ("torch", "torchvision", "transformers", "peft", "diffusers")
LLAMAS = {"7B": "llama-2-7b", "13B": "llama-2-13b", "70B": "llama-2-70b"}
BITS = {"16 bit": "f16", "8 bit": "q8_0", "4 bit": "q4_k_m"}
SCREEN, STACK, MILLION = 84 * 84, 4, 10**6
Rows = dict[str, Callable[[], MemoryEstimate]]
SEVEN: dict[str, Any] = {"model": "llama-2-7b", "checkpointing": True}
TRAINED: dict[str, dict[str, Any]] = {
    "Llama 2 7B QLoRA, 512 tokens, checkpointing": {**SEVEN, "method": "qlora"},
    "Llama 2 7B QLoRA, 2048 tokens, checkpointing": {**SEVEN, "method": "qlora", "sequence": 2048},
    "Llama 2 7B LoRA in bf16, 512 tokens, checkpointing": {**SEVEN, "method": "lora"},
    "Llama 3.2 3B LoRA in bf16, 512 tokens": {"model": "llama-3.2-3b", "method": "lora"},
    "Llama 3.2 3B LoRA in bf16, 2048 tokens, checkpointing": {
        "model": "llama-3.2-3b",
        "method": "lora",
        "sequence": 2048,
        "checkpointing": True,
    },
    "Llama 3.2 1B in full, bf16, 8-bit AdamW, 512 tokens": {
        "model": "llama-3.2-1b",
        "optimizer": "adamw8bit",
    },
    "BERT-base in full, mixed precision, 32 x 128 tokens": {
        "model": "bert-base",
        "precision": "amp",
        "batch": 32,
        "sequence": 128,
    },
    "BERT-base in full, mixed precision, 16 x 512 tokens": {
        "model": "bert-base",
        "precision": "amp",
        "batch": 16,
    },
    "DistilBERT in full, mixed precision, 32 x 128 tokens": {
        "model": "distilbert",
        "precision": "amp",
        "batch": 32,
        "sequence": 128,
    },
    "DistilBERT in full, mixed precision, 16 x 512 tokens": {
        "model": "distilbert",
        "precision": "amp",
        "batch": 16,
    },
    "GPT-2 in full, mixed precision, 4 x 1024 tokens": {
        "model": "gpt2",
        "precision": "amp",
        "batch": 4,
        "sequence": 1024,
    },
    "GPT-2 in full, mixed precision, 8 x 1024 tokens": {
        "model": "gpt2",
        "precision": "amp",
        "batch": 8,
        "sequence": 1024,
    },
}


def sections() -> dict[str, Rows]:
    """The page's tables: title -> row -> its prediction."""
    return {
        "Language models that answer (llama.cpp, cache in f16, one at a time)": dict(answering()),
        "The same in transformers (cache that grows, 4096 tokens)": dict(answering_transformers()),
        "Language models that are trained": dict(tuning()),
        "Images (torchvision's nets, SGD with momentum)": dict(images()),
        "Detection, graphs, agents": dict(others()),
        "Stable Diffusion (half precision, one picture)": dict(painting()),
    }


def answering() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for name, model in LLAMAS.items():
        for bits, way in BITS.items():
            for tokens in (2048, 4096, 8192):
                serving = Serving.of(model=model, way=way, context=tokens)
                yield f"Llama 2 {name}, {bits} ({way}), {tokens} tokens", partial(predict_inference, serving)


def answering_transformers() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for name, model in LLAMAS.items():
        for way in ("fp16", "int8", "nf4"):
            yield f"Llama 2 {name}, {way}", partial(predict_inference, Serving.of(model=model, way=way))


def tuning() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for name, values in TRAINED.items():
        yield name, partial(predict_language, Tuning.of(**values))


def images() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for net in ("resnet18", "resnet50"):
        for side in (32, 224):
            for batch in (128, 256):
                for precision in ("bf16", "fp32"):
                    shown = "mixed precision" if precision == "bf16" else "fp32"
                    name = f"ResNet-{net[6:]}, {side} px, batch {batch}, {shown}"
                    yield name, partial(_resnet, net, side, batch, precision)


def _resnet(net: str, side: int, batch: int, precision: str) -> MemoryEstimate:
    import torchvision

    with torch.device("meta"):
        model = getattr(torchvision.models, net)()
        inputs = torch.empty(batch, 3, side, side)

    def loss(model: torch.nn.Module, found: dict[str, torch.Tensor]) -> torch.Tensor:
        (pictures,) = found.values()
        return torch.nn.functional.cross_entropy(model(pictures), pictures.new_zeros(batch, dtype=torch.long))

    return predict(
        model,
        inputs,
        loss=loss,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        precision=precision,
    )


def others() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for batch in (8, 16):
        yield f"the detector of tasks/yolo, 640 px, batch {batch}, mixed precision", partial(_detector, batch)
    yield "GCN, 200,000 nodes of 128 values, 1,000,000 edges", lambda: predict(graph(200_000, MILLION, 128))
    for where, size in (
        ("in the machine's memory", 0),
        ("on the card, each screen once", SCREEN),
        ("on the card, stacks and their successors", 2 * STACK * SCREEN),
    ):
        yield f"DQN on Atari, buffer of 1,000,000 steps {where}", partial(_agent, size)


def _detector(batch: int) -> MemoryEstimate:
    return predict(boxes(640, batch=batch, precision="bf16"), batch)


def _agent(step_bytes: int) -> MemoryEstimate:
    """Nets and their training, and a buffer of so many bytes for each step, plus ten."""
    data = MILLION * (step_bytes + 10) / 2**20 if step_bytes else 0.0
    return predict(atari_recipe(NetParams(batch=32)), 32, data_mib=data)


def painting() -> Iterator[tuple[str, Callable[[], MemoryEstimate]]]:
    for model, name in (("sd-1.5", "SD 1.5, 512 px"), ("sdxl", "SDXL, 1024 px")):
        for offload, words in (
            ("none", "all on the card"),
            ("model", "one net on the card at a time"),
            ("sequential", "one layer at a time"),
        ):
            yield (
                f"{name}, {words}",
                partial(predict_image_generation, ImageGeneration.of(model=model, offload=offload)),
            )
    yield (
        "SD 1.5 LoRA training, 512 px, batch 1",
        partial(predict_image_generation, ImageGeneration.of(method="lora")),
    )
    yield (
        "SD 1.5 LoRA training, 512 px, batch 4, checkpointing",
        partial(predict_image_generation, ImageGeneration.of(method="lora", batch=4, checkpointing=True)),
    )


# ---------------------------------------------------------------------- the page


def line(name: str, found: MemoryEstimate) -> str:
    """A row: GiB, its band, and for each card whether it fits."""
    if found.unknown:
        return f"| {name} | unknown: {found.unknown} | | {' | '.join('' for _ in CARDS)} |"
    verdicts = ("yes" if found.verdict(card * GIB - RESERVE_MIB) == "fits" else "-" for card in CARDS)
    edges = f"{found.low_mib / GIB:.1f} - {found.high_mib / GIB:.1f}"
    return f"| {name} | {found.mib / GIB:.1f} | {edges} | {' | '.join(verdicts)} |"


def head() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in LIBRARIES)
    reserve = f"{RESERVE_MIB / GIB:g} GiB"
    context = f"{UNMEASURED_MIB} MiB"
    return f"""# What fits which card

Predicted, not measured: made by `python -m bench.what_fits --write` from the nets' shapes alone, with
{versions}. GiB of the card at the peak, the edges of the band, and
whether its upper edge fits a card of that many GB when {reserve} is left to other programs
(a desktop, a browser) and the CUDA context takes {context}. Your own card, model, batch
and sequence: `overnight fit --model llama-2-7b --method qlora --sequence 1024`, and `overnight fit CONFIG`
for an experiment. Llama 2 itself reads 4096 tokens; the rows of 8192 stand for other models of its shape.
"""


def tail() -> str:
    said = [
        f"{n} of {of} layers on {card} GB"
        for card in CARDS
        for n, of in [layers_that_fit(_large(), card * GIB - RESERVE_MIB)]
    ]
    return f"""
Of Llama 2 70B in q4_k_m with 4096 tokens there would fit {", ".join(said)};
the rest has to stay with the processor.
"""


def _large() -> Serving:
    return Serving.of(model="llama-2-70b", way="q4_k_m")


def table(title: str, rows: Rows) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield f"| what | GiB | band | {' | '.join(f'{card} GB' for card in CARDS)} |"
    yield f"| --- | ---: | ---: | {' | '.join(':---:' for _ in CARDS)} |"
    for name, make in rows.items():
        with silence():
            yield line(name, make())


def page() -> str:
    found = [head().rstrip("\n")]
    for title, rows in sections().items():
        for text in table(title, rows):
            print(text, file=sys.stderr, flush=True)  # minutes pass
            found.append(text)
    return "\n".join(found) + "\n" + tail()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--check", action="store_true", help="compare it with what is committed")
    parser.add_argument("--only", default="", help="rows whose name holds this, to the terminal")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        for name, make in (
            (n, m) for rows in sections().values() for n, m in rows.items() if arguments.only in n
        ):
            with silence():
                print(line(name, make()), flush=True)
        return 0
    text = page()
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    if not arguments.check:
        return 0
    ours, theirs = (
        [row for row in t.splitlines() if row.startswith("|")]
        for t in (text, PAGE.read_text(encoding="utf-8"))
    )
    print(
        "\n".join(f"differs: {row}" for row in ours if row not in theirs)
        or "the page is what is predicted now"
    )
    return 0 if ours == theirs else 1


if __name__ == "__main__":
    sys.exit(main())
