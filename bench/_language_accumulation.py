"""Losses and gradients of micro-batches against the whole batch, beside those of transformers' own loss.

bench/language.py prints the rows. Texts have 3 to 200 tokens, so that parts of equal sizes differ in tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench._rows import bar
from overnight import DataSpec
from overnight.training.batches import Batch, split_by_sample
from tasks.llm import tuning
from tasks.text.reading import Ragged
from tasks.text.translate import TranslateParams, translator_recipe

BAR = 1e-6
SAMPLES, SHORTEST, LONGEST, VOCABULARY = 12, 3, 200, 300
IGNORED = -100
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def accumulation_rows() -> dict[str, Any]:
    """The worst difference of any micro-batch, relative to the whole batch, in float64."""
    torch.manual_seed(0)
    chats, llama = _chats(), _llama()
    params = TranslateParams(width=16, heads=2, layers=1, vocabulary=VOCABULARY, longest=LONGEST, dropout=0.0)
    translator = translator_recipe(params, DataSpec())
    found = {
        "ours, translation": worst(translator.build().double(), _pairs(), translator.loss),
        "ours, chats": worst(llama, chats, tuning.loss),
        "transformers, items counted": worst(
            llama, chats, _by_items(int((chats["labels"] != IGNORED).sum()))
        ),
        "transformers, mean of means": worst(llama, chats, _by_means),
    }
    met = []
    for name, (loss, gradient) in found.items():
        ours = name.startswith("ours")
        wanted = f"<= {BAR:g}" if ours else "beside it"
        good = not ours or max(loss, gradient) <= BAR
        met.append(bar(f"accumulation: {name}", f"loss {loss:.1e}, gradient {gradient:.1e}", wanted, good))
    return {"accumulation": found, "met": met}


def worst(model: nn.Module, batch: Batch, loss: Loss) -> tuple[float, float]:
    """Over all sizes of parts: how far the loss and the gradient are from those of the whole, relatively."""
    model.train()
    whole = _gradient(model, [batch], loss)
    parts = [_gradient(model, list(split_by_sample(batch, size)), loss) for size in range(1, SAMPLES)]
    return tuple(  # type: ignore[return-value]
        max(float((one[i] - whole[i]).norm() / whole[i].norm()) for one in parts) for i in (0, 1)
    )


def _gradient(model: nn.Module, parts: list[Batch], loss: Loss) -> tuple[Tensor, Tensor]:
    """The mean loss, and its gradient as one row: as the loop accumulates them."""
    model.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in parts:
        summed, counted = loss(model, part)
        summed.backward()  # type: ignore[no-untyped-call]
        total, count = total + summed.detach(), count + counted
    return total / count, torch.cat([p.grad.flatten() / count for p in _with_gradient(model)])


def _with_gradient(model: nn.Module) -> Iterator[Any]:
    return (p for p in model.parameters() if p.grad is not None)


def _by_items(items: int) -> Loss:
    """transformers' loss where the number of tokens of the whole batch is given to each part."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return _asked(model, batch, num_items_in_batch=items), torch.tensor(len(batch["ids"]) / SAMPLES)

    return loss


def _by_means(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """transformers' loss of a part as it is: the mean over its tokens."""
    return _asked(model, batch), torch.tensor(1)


def _asked(model: nn.Module, batch: Batch, **more: Any) -> Tensor:
    mask = batch["attention"].long()
    found: Tensor = model(input_ids=batch["ids"], attention_mask=mask, labels=batch["labels"], **more).loss
    return found


def _lengths() -> Tensor:
    """From the shortest to the longest, in no order."""
    found = torch.randint(SHORTEST, LONGEST + 1, (SAMPLES,))
    found[:2] = torch.tensor([LONGEST, SHORTEST])
    return found


def _rows() -> Ragged:
    texts = [torch.randint(3, VOCABULARY, (int(n),)).tolist() for n in _lengths()]
    return Ragged.of([(text, [0] * len(text)) for text in texts])


def _pairs() -> Batch:
    found, everything = Batch(), torch.arange(SAMPLES)
    for name in ("source", "target"):
        side = _rows().batch(everything, LONGEST)
        found |= {name: side["tokens"], f"{name}_mask": side["mask"]}
    return found


def _chats() -> Batch:
    """Texts of which a random part is an answer."""
    made = _rows().batch(torch.arange(SAMPLES), LONGEST)
    answers = made["mask"] & (torch.rand(made["mask"].shape) < 0.6)
    answers[:, 1] = True
    labels = torch.where(answers, made["tokens"], IGNORED)
    return {"ids": made["tokens"], "attention": made["mask"], "labels": labels}


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST + 8,
    )
    model: nn.Module = LlamaForCausalLM(config).double()
    return model
