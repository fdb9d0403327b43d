"""Tune a language model on chats, merge it, and write it for llama.cpp and Ollama."""

from flows.tune import Tune
from overnight.artifact import Artifact
from overnight.step import pipeline
from tasks.llm.chats import load_chats
from tasks.llm.merge import MergeParams, merge_llm
from tasks.llm.tune import tune_llm


class Merge(Tune):
    """As of a tuning, whose result is remembered, and what is written."""

    merge: MergeParams = MergeParams()


@pipeline
def merge(cfg: Merge) -> Artifact:
    """Chats in, files for llama.cpp, Ollama and transformers out."""
    chats = load_chats(cfg.chats, cfg.data, cfg.tune.base)
    return merge_llm(cfg.merge, tune_llm(cfg.tune, chats), chats)
