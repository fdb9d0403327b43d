"""Tune a language model on chats: all of it, or adapters on a base of 16, 8 or 4 bits."""

from typing import TYPE_CHECKING, Any

from overnight import Artifact, Run, step
from overnight.artifact import DataSpec
from tasks.llm.tune_params import TuneParams

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe

__all__ = ["TuneParams", "tune_llm", "tune_recipe"]


def tune_recipe(params: TuneParams, spec: DataSpec) -> "Recipe[dict[str, Any]]":
    """How the model trains; without its weights, which the step puts in."""
    from tasks.llm import tuning

    return tuning.recipe(params, spec)


@step(gpu=True, recipe=tune_recipe, vram_mib=8192)
def tune_llm(run: Run, params: TuneParams, chats: Artifact) -> Artifact:
    """Tune a model to give the answers of chats; val picks the epoch, test is only reported.

    In: artifact "chats". Out: artifact "model": the adapter (method full: all weights), the base's name and
    digest, the template; it answers prompts. Logs before/loss, val/loss of each epoch, after/loss (nats of a
    token of an answer, its end included), bits_per_byte, test/loss beside test/base_loss, ended_share (of the
    answers to the prompts: those that end by themselves), tokens/s, and the answers before and after.
    Raises DataError: a base that cannot be loaded, or not the one that the chats were formatted for.
    Source: Hu et al. 2021 (arXiv:2106.09685); Dettmers et al. 2023 (arXiv:2305.14314).
    """
    from tasks.llm import tuning

    return tuning.fit(run, params, chats)
