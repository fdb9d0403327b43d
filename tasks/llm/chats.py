"""Chats as tokens of a model's own template, with a mask of the answers: what its tuning learns from."""

from overnight import Artifact, Run, step
from overnight.artifact import DataSpec
from overnight.data.dataset import Dataset
from overnight.data.pretrained import Pretrained
from tasks.llm.tune_params import ChatParams

__all__ = ["ChatParams", "load_chats"]


def _spec(params: ChatParams, data: Dataset, _base: Pretrained) -> DataSpec:
    """At the longest."""
    return DataSpec(shape=(params.context,), dtype="int32", counts=data.expected.counts)


@step(spec=_spec)
def load_chats(run: Run, params: ChatParams, data: Dataset, base: Pretrained) -> Artifact:
    """Format chats by the model's own template, else by its entry's, and mark the tokens of the answers.

    Out: artifact "chats" with, for each split, tokens int32 (all chats, one after another), answers bool (of
    each token), lengths int64 and bytes int64 (UTF-8 of the answers) of each chat; its meta has the template
    and the end tokens. Logs chats and tokens by split, those cut or left out, a picture of the lengths and
    one of a formatted chat. Raises DataError: no template; a template that does not begin a chat as it begins
    its parts, or does not end an answer with an end token; no chat left to train on.
    """
    from tasks.llm import chat_tokens

    return chat_tokens.load(run, params, data, base)
