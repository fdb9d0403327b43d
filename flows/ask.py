"""Ask a language model on this machine."""

from typing import Self

from pydantic import model_validator

from overnight.artifact import Artifact
from overnight.config import Experiment
from overnight.data.pretrained import Pretrained
from overnight.step import pipeline
from tasks.llm.ask import CompareParams, ModelParams, ask_model, compare_quants
from tasks.llm.endpoint import QuestionParams


class Ask(Experiment):
    """Which weights, how they are kept, and what is asked; `compare` measures what fewer bits cost."""

    weights: Pretrained
    model: ModelParams = ModelParams()
    ask: QuestionParams
    compare: CompareParams | None = None

    @model_validator(mode="after")
    def _language_model(self) -> Self:
        if self.weights.form not in ("transformers", "gguf"):
            raise ValueError(
                f"weights: {self.weights.name} is of the form {self.weights.form}, no language model"
            )
        return self


@pipeline
def ask(cfg: Ask) -> Artifact:
    """Prompts in, answers out."""
    if cfg.compare:
        compare_quants(cfg.compare, cfg.weights)
    return ask_model(cfg.model, cfg.ask, cfg.weights)
