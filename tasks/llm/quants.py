"""The loss of a text by the bits that a model's weights are kept in."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from overnight.data.pretrained import Pretrained
from overnight.errors import file_error
from overnight.paths import root
from overnight.run import Run
from tasks.llm.ask_params import CompareParams
from tasks.llm.asking import held_bytes, loaded
from tasks.llm.base import tokenizer_of
from tasks.llm.gguf import as_transformers
from tasks.shared import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB = 2**20
LONGEST = 64  # characters of a token, so that a large file is not tokenised whole


@dataclass(frozen=True)
class Row:
    """loss: nats a token; mib: of the weights."""

    quant: str
    mib: float
    loss: float
    tokens_per_s: float


def compare(run: Run, params: CompareParams, weights: Pretrained) -> None:
    ids = _ids(params, weights)
    folder, device = as_transformers(weights), torch.device(run.device)
    rows = list[Row]()
    for done, quant in enumerate(params.quants):
        run.progress(done, len(params.quants), f"quants, now {quant}")
        model = loaded(folder, quant, device)
        rows.append(_measured(run, model, quant, ids, params.window))
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _log(run, rows)
    run.picture("quants", picture(rows, weights.name))
    _page(run, rows, weights.name, len(ids))
    run.progress(len(rows), len(rows), "quants")


def _ids(params: CompareParams, weights: Pretrained) -> Tensor:
    """The first tokens of the text. Raises DataError."""
    path = root() / params.text.expanduser()
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST * params.tokens)
    except OSError as error:
        raise file_error(path, f"{error.strerror}; name a file of text in compare.text") from None
    except UnicodeDecodeError:
        raise file_error(path, "is no text in UTF-8; name another in compare.text") from None
    found = tokenizer_of(weights)(text)["input_ids"][: params.tokens]
    if len(found) < 2:
        raise file_error(path, f"has {len(found)} tokens; compare.text needs two at least")
    return torch.tensor(found)


@torch.inference_mode()
def _measured(run: Run, model: Any, quant: str, ids: Tensor, window: int) -> Row:
    """A window of one token has nothing to predict and is left out."""
    device = next(model.parameters()).device
    windows = [one for one in torch.split(ids, window) if len(one) > 1]
    nats, began = 0.0, time.perf_counter()
    for number, one in enumerate(windows):
        row = one.to(device)
        scores = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        nats += float(functional.cross_entropy(scores, row[1:], reduction="sum"))
        run.progress(number + 1, len(windows), f"windows in {quant}")
    seconds = time.perf_counter() - began
    count = sum(len(one) - 1 for one in windows)
    return Row(quant, held_bytes(model) / MIB, nats / count, len(ids) / seconds)


def _log(run: Run, rows: Sequence[Row]) -> None:
    row = rows[-1]
    values = {"loss": row.loss, "weights_mib": row.mib, "tokens_per_s": row.tokens_per_s}
    if len(rows) > 1:
        values["loss_added"] = row.loss - rows[0].loss
    run.metrics({f"{name}/{row.quant}": value for name, value in values.items()})


def _page(run: Run, rows: Sequence[Row], model: str, tokens: int) -> None:
    first = rows[0]
    lines = [
        f"# {model}: loss of {tokens:,} tokens by the bits of its weights\n",
        f"| weights in | MiB | loss, nats a token | above {first.quant} | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        added, rate = f"{row.loss - first.loss:+.3f}", f"{row.tokens_per_s:,.0f}"
        lines.append(f"| {row.quant} | {row.mib:,.0f} | {row.loss:.3f} | {added} | {rate} |")
    path = Path(run.folder) / "quants.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.publish(path)
    best = ", ".join(f"{row.quant} {row.loss:.3f}" for row in rows)
    run.note(f"{model}: nats a token: {best}")


def picture(rows: Sequence[Row], model: str) -> "Figure":
    """Quality against bytes: a point for each."""
    points = {f"{row.quant} {row.loss:.3f}": ([row.mib], [row.loss]) for row in rows}
    return figures.curves(points, "MiB of weights", "nats a token", model)
