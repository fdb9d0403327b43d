"""A trained classifier of texts, of one sentence or two."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import BadInput
from overnight.predictor import ItemLosses
from tasks.shared.predictors import load_model, saved_params
from tasks.shared.tokens import Pieces, load_tokens
from tasks.text.classify_params import ClassifyParams
from tasks.text.classify_training import pad_of, probabilities_of
from tasks.text.encoder import build
from tasks.text.load import texts_of
from tasks.text.reading import Ragged, by_pieces, by_tokenizer

if TYPE_CHECKING:
    import pandas as pd


def predictor(folder: Path) -> "TextClassifier":
    """The classifier in that folder; it needs no other weights."""
    return TextClassifier(folder)


class TextClassifier:
    """Texts to classes and their probabilities."""

    def __init__(self, folder: Path) -> None:
        config, weights = load_model(folder)
        self.interface = contract.interface(folder)
        self.names = [column.name for column in self.interface.inputs]
        self.classes: tuple[str, ...] = tuple(config["classes"])
        params = saved_params(ClassifyParams, config["params"])
        size = params.vocabulary
        if params.weights is None:
            tokens = load_tokens(config["tokens"])
            assert isinstance(tokens, Pieces)
            size, self.encode = tokens.size, by_pieces(tokens, params.longest)
        else:
            known = params.weights.model_copy(update={"config": config["config"]})
            params = params.model_copy(update={"weights": known})
            self.encode = by_tokenizer(Tokenizer.from_str(config["tokenizer"]), params.longest)
        self.pad = pad_of(params)
        self.net = build(params, size, len(self.classes))
        self.net.load_state_dict(weights)
        self.net.eval()

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The class of each row: of its `text`, or of its sentences `first` and `second`. Raises BadInput."""
        contract.check_columns(frame, self.names)
        columns = [[_text(value, row, name) for row, value in enumerate(frame[name])] for name in self.names]
        return contract.class_table(self.classes, self._probabilities(list(zip(*columns, strict=True))))

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """0 or 1 for each test text of a "texts" artifact; equal texts share a cluster."""
        (texts,) = artifacts
        classes = texts.expect("texts").spec.classes
        rows = texts_of(texts, "test")
        truth = [classes[label] for label in texts.arrays("test_labels")["test_labels"]]
        items = [f"{number} {' | '.join(row)[:80]}" for number, row in enumerate(rows)]
        return contract.class_losses(self.classes, truth, self._probabilities(rows), items, rows)

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []

    def _probabilities(self, rows: Sequence[tuple[str, ...]]) -> np.ndarray:
        if not rows:
            return np.zeros((0, len(self.classes)), np.float32)
        return probabilities_of(self.net, Ragged.of(self.encode(rows), self.pad))


def _text(value: object, row: int, name: str) -> str:
    """Raises BadInput for what is no text, as a missing value."""
    if not isinstance(value, str):
        raise BadInput(f"row {row} of the column {name!r}: expected a text, found {value!r}")
    return value
