"""A tuned language model: its base as it was tuned on, and what the tuning changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import BadInput, DataError, file_error
from overnight.predictor import ItemLosses
from overnight.training.acceleration import Precision
from tasks.llm import base as bases
from tasks.llm.chat_tokens import Format, format_of
from tasks.llm.generate import generate
from tasks.llm.tune_params import TuneParams
from tasks.llm.tuning import by_chat
from tasks.shared.predictors import load_model, saved_params

if TYPE_CHECKING:
    import pandas as pd

MOST_TOKENS = 4096  # of an answer


def predictor(folder: Path) -> "TunedModel":
    """The model in that folder."""
    return TunedModel(folder)


class TunedModel:
    """Prompts to answers, the most probable token each time."""

    def __init__(self, folder: Path) -> None:
        self.interface = contract.interface(folder)
        self.tuned = Tuned.read(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = Precision("auto", device)
        self.model = self.tuned.model(device, self.precision.name).eval()
        self.form = self.tuned.form()

    def predict(self, frame: "pd.DataFrame", tokens: float = 256) -> "pd.DataFrame":
        """The answer to each prompt of the column `prompt`, and whether it ended within `tokens`.

        Raises BadInput for a prompt that is no text, or longer than the model can read.
        """
        import pandas as pd

        contract.check_columns(frame, ["prompt"])
        if not 1 <= tokens <= MOST_TOKENS:
            raise BadInput(f"tokens is {tokens:g}; give a number from 1 to {MOST_TOKENS}")
        prompts = [self._ids(given, row) for row, given in enumerate(frame["prompt"])]
        self._check_lengths(prompts, int(tokens))
        with self.precision.cast():
            found = generate(self.model, prompts, self.form.ends, int(tokens))
        texts = [self.form.tokenizer.decode(one.ids, skip_special_tokens=True) for one in found]
        return pd.DataFrame(
            {
                "answer": np.asarray(texts, object),
                "ended": np.array([one.ended for one in found], bool),
                "tokens": np.array([len(one.ids) for one in found], np.int64),
            }
        )

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """1 less the mean probability (geometric, by token) of the answers of each chat of test.

        Raises DataError for chats that were formatted for another base: their tokens are others.
        """
        (chats,) = artifacts
        self.tuned.check(chats)
        arrays = chats.arrays("test_tokens", "test_answers", "test_lengths")
        data = {name: torch.from_numpy(array) for name, array in arrays.items()}
        with torch.inference_mode(), self.precision.cast():
            nats = (
                by_chat(self.model, data, "test").numpy() if len(arrays["test_lengths"]) else np.ones((0, 2))
            )
        tokens = np.split(arrays["test_tokens"], arrays["test_lengths"].cumsum()[:-1])
        loss = 1 - np.exp(-nats[:, 0] / np.maximum(nats[:, 1], 1))
        items = np.array([f"chat {number}" for number in range(len(loss))], str)
        keys = [one.tobytes() for one in tokens][: len(loss)]
        return ItemLosses(loss, items, contract.clusters(keys), np.full(len(loss), "answers"))

    def _check_lengths(self, prompts: list[list[int]], tokens: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        for row, ids in enumerate(prompts):
            if most and len(ids) + tokens > most:
                raise BadInput(
                    f"prompt {row}: its {len(ids):,} tokens and an answer of {tokens:,} are more than the "
                    f"{most:,} that the model can read; shorten it, or ask for fewer tokens"
                )

    def draw(self, _frame: "pd.DataFrame", _found: "pd.DataFrame", _folder: Path) -> list[Path]:
        return []

    def _ids(self, given: object, row: int) -> list[int]:
        if not isinstance(given, str) or not given.strip():
            raise BadInput(f"prompt {row}: expected text, there is {given!r}")
        return self.form.ids([{"role": "user", "content": given}], asks=True)


class Tuned:
    """What a tuning handed on: values, weights, the digest of its base and its template."""

    def __init__(self, folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self.folder, self.weights = folder, weights
        self.params = saved_params(TuneParams, config["params"])
        self.digest: str = config["base_digest"]
        self.template: str = config["template"]
        self.ends: tuple[int, ...] = tuple(config["ends"])

    @classmethod
    def read(cls, folder: Path) -> "Tuned":
        """Raises DataError where its base is not here, or is another than it was tuned on."""
        found = cls(folder, *load_model(folder))
        base = found.params.base
        if bases.digest_of(base) != found.digest:
            raise DataError(
                f"{folder}: was tuned on {base.name} with the digest {found.digest[:16]}; the weights of "
                f"that name here have {bases.digest_of(base)[:16]}. Get those of then, or tune again"
            )
        return found

    def check(self, chats: Artifact) -> None:
        """Raises DataError for chats that were formatted for another base: their tokens are others."""
        meta = chats.expect("chats").meta()
        if meta["base_digest"] != self.digest:
            raise file_error(chats.path, f"these chats were formatted for {meta['base']}, another base")

    def form(self) -> Format:
        found = format_of(self.params.base)
        found.tokenizer.chat_template = self.template
        return Format(found.tokenizer, self.ends)

    def model(self, device: torch.device, precision: str, bits: str | None = None) -> Any:
        """bits: of the base: nf4, int8, empty for none; as it was tuned when left out."""
        params = self.params
        if bits is not None and params.method == "qlora":
            params = params.model_copy(update={"method": "qlora" if bits else "lora"})
        base = bases.Base(params, precision, device)
        model: Any = base.build()
        if params.method == "full":
            model.load_state_dict(self.weights, strict=False)
            model.tie_weights()
            return model
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, self.weights)
        return model.to(device)
