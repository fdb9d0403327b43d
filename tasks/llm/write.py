"""A language model from scratch, small enough for a night on one card."""

from typing import TYPE_CHECKING

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from overnight.step import step
from tasks.llm.write_params import WriteParams

if TYPE_CHECKING:
    from torch import Tensor

    from overnight.training.recipe import Recipe

__all__ = ["WriteParams", "train_writer", "writer_recipe"]


def writer_recipe(params: WriteParams, spec: DataSpec) -> "Recipe[dict[str, Tensor]]":
    """How the model trains, from the number of known tokens alone."""
    from tasks.llm import write_training

    return write_training.recipe(params, spec)


@step(gpu=True, recipe=writer_recipe, vram_mib=2048)
def train_writer(run: Run, params: WriteParams, corpus: Artifact) -> Artifact:
    """Train a decoder on running text; val picks the epoch, test is only reported.

    In: artifact "corpus". Out: artifact "model", which continues a text. Says first how long it will take and
    how much memory. Logs val/loss (nats a token), val/bits_per_byte, train/tokens_per_s, what it writes after
    each epoch, and of test the same beside counts of single tokens, pairs and runs of five. Raises DataError
    where train is shorter than the context.
    """
    from tasks.llm import write_training

    return write_training.fit(run, params, corpus)
