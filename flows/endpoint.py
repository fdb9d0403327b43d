"""Ask a server of a language model."""

from typing import Self

from pydantic import model_validator

from overnight import Artifact, Experiment, pipeline
from tasks.llm.endpoint import AskParams, EndpointParams, ServerParams, ask_endpoint, ask_server


class Endpoint(Experiment):
    """Either `endpoint`, a server that runs already, or `server`, one that the step starts and ends."""

    endpoint: EndpointParams | None = None
    server: ServerParams | None = None
    ask: AskParams

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.endpoint is None) == (self.server is None):
            raise ValueError(
                "give either endpoint (a server that runs) or server (a command that starts one)"
            )
        return self


@pipeline
def endpoint(cfg: Endpoint) -> Artifact:
    """Prompts in, answers out."""
    if cfg.endpoint:
        return ask_endpoint(cfg.endpoint, cfg.ask)
    assert cfg.server is not None  # the experiment has either
    return ask_server(cfg.server, cfg.ask)
