"""Learn from texts: their classes, or the texts that they become."""

from typing import Self

from pydantic import model_validator

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.dataset import Dataset
from overnight.step import pipeline
from tasks.text.classify import ClassifyParams, train_classifier
from tasks.text.load import TextParams, load_texts
from tasks.text.pairs import PairParams, load_pairs
from tasks.text.translate import TranslateParams, train_translator

SECTIONS = {"text": ("texts", "classifier"), "pairs": ("pairs", "translator")}  # by the kind of the data


class Text(Experiment):
    """Labelled texts (kind text), which a classifier reads; or pairs (kind pairs), which are translated."""

    data: Dataset
    texts: TextParams = TextParams()
    classifier: ClassifyParams = ClassifyParams()
    pairs: PairParams = PairParams()
    translator: TranslateParams = TranslateParams()

    @model_validator(mode="after")
    def _of_the_data(self) -> Self:
        if self.data.kind not in SECTIONS:
            raise ValueError(
                f"data set {self.data.name!r} is of kind {self.data.kind!r}, expected 'text' with classes, "
                "or 'pairs'"
            )
        for kind, names in SECTIONS.items():
            given = sorted(set(names) & self.model_fields_set)
            if kind != self.data.kind and given:
                raise ValueError(
                    f"{given[0]}: is for data of kind {kind!r}; {self.data.name!r} is of kind "
                    f"{self.data.kind!r}"
                )
        return self


@pipeline
def text(cfg: Text) -> Artifact:
    """Texts in, a trained model out."""
    if cfg.data.kind == "pairs":
        return train_translator(cfg.translator, load_pairs(cfg.pairs, cfg.data))
    return train_classifier(cfg.classifier, load_texts(cfg.texts, cfg.data))
