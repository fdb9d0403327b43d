"""Encoders of texts with a layer for classes: a pretrained one, or layers of our own."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overnight.data.pretrained import Pretrained
from overnight.errors import DataError, file_error, one_line
from tasks.shared.transformer import Block, Rotary
from tasks.text.classify_params import ClassifyParams


class Classifier(nn.Module):
    """Logits of classes from the mean over a text's tokens. N texts of T tokens, W values each."""

    def __init__(self, body: nn.Module, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        x_NTW = self.body(tokens, kinds, mask)
        weights = mask[..., None].to(x_NTW.dtype)
        mean = (x_NTW * weights).sum(1) / weights.sum(1).clamp(min=1)
        logits: Tensor = self.head(self.dropout(mean))
        return logits


class Own(nn.Module):
    """Layers from scratch."""

    def __init__(self, params: ClassifyParams, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, params.width)
        self.kinds = nn.Embedding(2, params.width)
        self.rotary = Rotary(params.width // params.heads, params.longest)
        self.blocks = nn.ModuleList(
            Block(params.width, params.heads, dropout=params.dropout) for _ in range(params.layers)
        )
        self.norm = nn.RMSNorm(params.width)
        for table in (self.embedding, self.kinds):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        turns = self.rotary(tokens.shape[1])
        x_NTW = self.embedding(tokens) + self.kinds(kinds)
        for block in self.blocks:
            x_NTW = block(x_NTW, turns, mask)
        out: Tensor = self.norm(x_NTW)
        return out


class Given(nn.Module):
    """An encoder of transformers, by its config.json."""

    def __init__(self, config: dict[str, Any], freeze_embeddings: bool) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        values = {name: value for name, value in config.items() if name != "model_type"}
        made = AutoConfig.for_model(config["model_type"], **values)
        self.model = AutoModel.from_config(made, attn_implementation="sdpa")
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # of the first token, which is not asked
        self.takes_kinds = getattr(made, "type_vocab_size", 0) > 1
        if freeze_embeddings:
            self.model.get_input_embeddings().weight.requires_grad_(False)

    def forward(self, tokens: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        more = {"token_type_ids": kinds} if self.takes_kinds else {}
        found: Tensor = self.model(input_ids=tokens, attention_mask=mask.long(), **more).last_hidden_state
        return found


def build(params: ClassifyParams, vocabulary: int, classes: int) -> Classifier:
    """The net without pretrained weights."""
    if params.weights is None:
        return Classifier(Own(params, vocabulary), params.width, classes, params.dropout)
    config = config_of(params.weights)
    body = Given(config, params.freeze_embeddings)
    return Classifier(body, body.model.config.hidden_size, classes, params.dropout)


def config_of(weights: Pretrained) -> dict[str, Any]:
    """Of the entry, or of the folder where it is here. Raises DataError."""
    if weights.config:
        return weights.config
    for folder in weights.found():
        file = folder / "config.json"
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    raise DataError(
        f"{weights.called}: its shape is not known; it is not here, and its entry has no `config`; "
        f"`overnight weights fetch {weights.name}`"
    )


def load_body(net: Classifier, folder: Path) -> Classifier:
    """The net with the pretrained weights of the folder.

    Raises DataError: files that are damaged, do not fit, or lack weights, which would begin at random.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    body = net.body
    assert isinstance(body, Given)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        found, read = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        state = {name: t for name, t in found.state_dict().items() if not name.startswith("pooler.")}
        body.model.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise file_error(folder, f"its weights cannot be loaded: {one_line(error)}") from None
    missing = sorted(name for name in read["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise file_error(
            folder,
            f"the files lack {len(missing)} weights that its config.json asks for, such as {missing[0]}; get "
            "the whole model, or mend it",
        )
    return net
