"""Train an agent in an environment."""

from overnight import Artifact, Experiment, pipeline
from tasks.rl.train import AgentParams, train_agent


class Agent(Experiment):
    """Which environment, and how the agent learns."""

    agent: AgentParams = AgentParams()


@pipeline
def agent(cfg: Agent) -> Artifact:
    """A trained policy."""
    return train_agent(cfg.agent)
