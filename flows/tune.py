"""Tune a language model on chats."""

from typing import Annotated

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset, of_kind
from overnight.step import pipeline
from tasks.llm.chats import ChatParams, load_chats
from tasks.llm.tune import TuneParams, tune_llm


class Tune(Experiment):
    """Which chats, how they are formatted, and how the model is tuned on them."""

    data: Annotated[Dataset, of_kind("chats")]
    chats: ChatParams = ChatParams()
    tune: TuneParams


@pipeline
def tune(cfg: Tune) -> Artifact:
    """Chats in, tuned model out."""
    chats = load_chats(cfg.chats, cfg.data, cfg.tune.base)
    return tune_llm(cfg.tune, chats)
