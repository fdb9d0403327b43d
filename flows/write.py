"""Train a language model from scratch."""

from typing import Annotated

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset, of_kind
from overnight.step import pipeline
from tasks.llm.corpus import CorpusParams, load_corpus
from tasks.llm.write import WriteParams, train_writer


class Write(Experiment):
    """Which text, how it becomes tokens, and how the net is trained on them."""

    data: Annotated[Dataset, of_kind("text")]
    corpus: CorpusParams = CorpusParams()
    writer: WriteParams = WriteParams()


@pipeline
def write(cfg: Write) -> Artifact:
    """Text in, a model that continues it out."""
    return train_writer(cfg.writer, load_corpus(cfg.corpus, cfg.data))
