"""A trained model that makes one text of another."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import BadInput
from overnight.predictor import ItemLosses
from tasks.shared.predictors import load_model, saved_params
from tasks.shared.tokens import Pieces, load_tokens
from tasks.text.pairs import pairs_of
from tasks.text.seq2seq import Seq2Seq
from tasks.text.text_scores import text_losses
from tasks.text.translate_params import TranslateParams
from tasks.text.translate_training import translated

if TYPE_CHECKING:
    import pandas as pd

MOST_BEAMS = 64


def predictor(folder: Path) -> "Translator":
    """The model in that folder."""
    return Translator(folder)


class Translator:
    """Sources to targets."""

    def __init__(self, folder: Path) -> None:
        config, weights = load_model(folder)
        self.interface = contract.interface(folder)
        self.params = saved_params(TranslateParams, config["params"])
        tokens = load_tokens(config["tokens"])
        assert isinstance(tokens, Pieces)
        self.tokens = tokens
        self.net = Seq2Seq(self.params, tokens.size)
        self.net.load_state_dict(weights)
        self.net.eval()

    def predict(self, frame: "pd.DataFrame", **options: float) -> "pd.DataFrame":
        """The target of each text of the column `source`. options: beams; 1 is greedy. Raises BadInput."""
        import pandas as pd

        contract.check_columns(frame, ["source"])
        beams = options.get("beams", self.interface.options["beams"])
        if not 1 <= beams <= MOST_BEAMS or beams % 1:
            raise BadInput(f"beams={beams:g}: expected a whole number from 1 to {MOST_BEAMS}")
        sources = list(frame["source"])
        odd = next((i for i, source in enumerate(sources) if not isinstance(source, str)), None)
        if odd is not None:
            raise BadInput(f"row {odd} of the column 'source': expected a text, found {sources[odd]!r}")
        found = translated(self.net, self.tokens, sources, self.params, int(beams))
        return pd.DataFrame({"target": np.array(found, object)})

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """1 less chrF of each test pair of a "pairs" artifact; pairs of equal sources share a cluster."""
        (pairs,) = artifacts
        rows = pairs_of(pairs.expect("pairs"), "test")
        sources, wanted = [source for source, _ in rows], [target for _, target in rows]
        found = translated(self.net, self.tokens, sources, self.params, self.params.beams)
        items = [f"{number} {source[:80]}" for number, source in enumerate(sources)]
        return ItemLosses(
            text_losses(found, wanted),
            np.asarray(items, str),
            contract.clusters(sources),
            np.full(len(rows), "text"),
        )

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []
