"""A trained language model that continues texts."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import BadInput
from overnight.predictor import ItemLosses
from tasks.llm.write_params import WriteParams
from tasks.llm.write_training import banned_of, build, continued, text_nats
from tasks.shared.predictors import load_model, saved_params
from tasks.shared.tokens import load_tokens

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 512  # characters of a test item
MOST = 2000  # test items, evenly over the text
LONGEST = 100_000  # tokens of an answer
BITS = 8.0  # of a byte, by a model that knows nothing


def predictor(folder: Path) -> "Writer":
    """The model in that folder."""
    return Writer(folder)


class Writer:
    """Texts to what may follow them."""

    def __init__(self, folder: Path) -> None:
        config, weights = load_model(folder)
        self.interface = contract.interface(folder)
        self.params = saved_params(WriteParams, config["params"])
        self.tokens = load_tokens(config["tokens"])
        self.net = build(self.params, self.tokens.size)
        self.net.load_state_dict(weights)
        self.net.eval()

    def predict(self, frame: "pd.DataFrame", **options: float) -> "pd.DataFrame":
        """What follows each text of the column `prompt`; an empty one begins as the samples of training.

        options: temperature (0: always the most probable token), tokens (how many), seed; equal ones give
        equal answers, whatever else the frame holds. Raises BadInput.
        """
        import pandas as pd

        contract.check_columns(frame, ["prompt"])
        given = {**self.interface.options, **options}
        temperature, length, seed = given["temperature"], given["tokens"], given["seed"]
        if not 1 <= length <= LONGEST or length % 1:
            raise BadInput(f"tokens={length:g}: expected a whole number from 1 to {LONGEST:,}")
        if not 0 <= temperature < float("inf"):
            raise BadInput(f"temperature={temperature:g}: expected 0 or more; 1 is as trained")
        if not 0 <= seed < 2**63 or seed % 1:
            raise BadInput(f"seed={seed:g}: expected a whole number from 0 on")
        answers = [
            self._continued(_text(prompt, row), int(length), temperature, int(seed))
            for row, prompt in enumerate(frame["prompt"])
        ]
        return pd.DataFrame({"continuation": np.array(answers, object)})

    def _continued(self, prompt: str, length: int, temperature: float, seed: int) -> str:
        begin = torch.from_numpy(self.tokens.encode(prompt or self.params.prompt)).long()
        found = continued(self.net, begin[None], length, temperature, seed, banned_of(self.tokens))
        return self.tokens.decode(found[0].tolist())

    @torch.inference_mode()
    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """Bits a byte of each block of 512 characters of the test text, as a share of 8, at most 1.

        A block is read alone, after a line end, so that models with other tokens score the same items.
        """
        (corpus,) = artifacts
        text = (corpus.expect("corpus").path / "test.txt").read_bytes().decode()
        whole = [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]
        numbers = np.unique(np.linspace(0, len(whole) - 1, min(MOST, len(whole))).astype(int))
        blocks = [whole[number] for number in numbers]
        loss = np.minimum(1.0, [self._bits_per_byte(block) / BITS for block in blocks])
        items = [f"{number} {block[:40]!r}" for number, block in zip(numbers, blocks, strict=True)]
        return ItemLosses(
            np.asarray(loss, np.float64),
            np.asarray(items, str),
            contract.clusters(blocks),
            np.full(len(items), "text"),
        )

    def _bits_per_byte(self, block: str) -> float:
        tokens = torch.from_numpy(self.tokens.encode(f"\n{block}"))
        nats = float(text_nats(self.net, tokens, self.params.context).double().sum())
        return nats / float(np.log(2)) / len(block.encode("utf-8", "replace"))

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []


def _text(value: object, row: int) -> str:
    """Raises BadInput for what is no text; a missing value is no empty prompt."""
    if not isinstance(value, str):
        raise BadInput(f"row {row} of the column 'prompt': expected a text, found {value!r}")
    return value
