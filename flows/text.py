"""Learn from texts: their classes, or the texts that they become."""

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset
from overnight.step import pipeline
from tasks.text.classify import ClassifyParams, train_classifier
from tasks.text.load import TextParams, load_texts


class Text(Experiment):
    """Labelled texts (kind text), which a classifier reads."""

    data: Dataset
    texts: TextParams = TextParams()
    classifier: ClassifyParams = ClassifyParams()


@pipeline
def text(cfg: Text) -> Artifact:
    """Texts in, a trained model out."""
    return train_classifier(cfg.classifier, load_texts(cfg.texts, cfg.data))
