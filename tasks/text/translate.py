"""One text out of another, from scratch: translations and summaries."""

from typing import TYPE_CHECKING

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from overnight.step import step
from tasks.text.translate_params import TranslateParams

if TYPE_CHECKING:
    from torch import Tensor

    from overnight.training.recipe import Recipe

__all__ = ["TranslateParams", "train_translator", "translator_recipe"]


def translator_recipe(params: TranslateParams, spec: DataSpec) -> "Recipe[dict[str, Tensor]]":
    """How the model trains, from its values alone."""
    from tasks.text import translate_training

    return translate_training.recipe(params, spec)


@step(gpu=True, recipe=translator_recipe, vram_mib=2048)
def train_translator(run: Run, params: TranslateParams, pairs: Artifact) -> Artifact:
    """Train a model that makes the target of a source; val picks the epoch, test is only reported.

    In: artifact "pairs". Out: artifact "model". Logs val/loss (nats a token), and of test BLEU and chrF with
    sacrebleu's signatures, ROUGE-L, all by beam search; test/bleu_greedy; beside them test/bleu_words, word
    by word from a table learnt from train, or, of summaries, test/rouge_l_first, the first sentences. The
    worst texts stand in worst.csv.
    """
    from tasks.text import translate_training

    return translate_training.fit(run, params, pairs)
