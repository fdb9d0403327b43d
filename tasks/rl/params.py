"""The values of an agent's training; those of the algorithms are as rl-zoo tuned them for CartPole."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from overnight import Params, Values


class LearnerParams(Values):
    """What both algorithms have."""

    RENAMED: ClassVar = {"decay": "anneal"}

    n_envs: int = Field(8, ge=1, le=512, description="environments stepped side by side")
    hidden: list[int] = Field([64, 64], description="units of the layers between observation and action")
    lr: float = Field(1e-3, gt=0)
    gamma: float = Field(0.98, gt=0, le=1, description="discount of a reward one step later")
    anneal: bool = Field(True, description="learning rate, and clip_range of PPO, fall linearly to zero")


class PpoParams(LearnerParams):
    """PPO: how a rollout becomes an update."""

    RENAMED: ClassVar = {**LearnerParams.RENAMED, "clip": "clip_range"}

    n_steps: int = Field(32, ge=2, description="of each environment between updates")
    batch: int = Field(256, ge=2)
    epochs: int = Field(20, ge=1, description="passes over a rollout")
    gae_lambda: float = Field(0.8, ge=0, le=1)
    clip_range: float = Field(0.2, gt=0, description="of the ratio of policies")
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")


class DqnParams(LearnerParams):
    """DQN: what it remembers and how often it learns."""

    n_envs: int = Field(1, ge=1, le=512, description="environments stepped side by side")
    hidden: list[int] = [256, 256]
    lr: float = Field(2.3e-3, gt=0)
    gamma: float = Field(0.99, gt=0, le=1)
    anneal: bool = False
    buffer: int = Field(100_000, ge=1, description="steps remembered")
    learning_starts: int = Field(1000, ge=0)
    batch: int = Field(64, ge=1)
    train_every: int = Field(256, ge=1, description="steps")
    gradient_steps: int = Field(128, ge=1, description="updates each time it trains")
    target_every: int = Field(10, ge=1, description="steps between copies to the target net")
    exploration: float = Field(0.16, gt=0, le=1, description="share of all steps until epsilon is at its end")
    epsilon: float = Field(0.04, ge=0, le=1, description="of random actions, at the end")


class AgentParams(Params):
    """The environment, the algorithm, and when the agent is evaluated."""

    env: str = Field(
        "CartPole-v1", description="Gymnasium id, `module:id` when a module must be imported for it"
    )
    kwargs: dict[str, Any] = Field({}, description="arguments of the environment's constructor")
    algorithm: Literal["ppo", "dqn"] = "ppo"
    total_steps: int = Field(100_000, ge=1, description="of all environments together")
    eval_every: int = Field(5000, ge=1, description="steps between evaluations, the best of which is kept")
    eval_episodes: int = Field(20, ge=1)
    stop_at: float | None = Field(None, description="mean return of an evaluation that ends the training")
    test_episodes: int = Field(20, ge=1)
    longest_episode: int = Field(
        10_000,
        ge=1,
        description="steps after which an evaluation ends an episode that the environment does not",
    )
    return_bounds: tuple[float, float] | None = Field(
        None,
        description="lowest and highest return of an episode, by which agents are compared; by random play "
        "and the environment's reward threshold when left out",
    )
    ppo: PpoParams = PpoParams()
    dqn: DqnParams = DqnParams()

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        """A lowest and a highest."""
        if self.return_bounds and self.return_bounds[0] >= self.return_bounds[1]:
            raise ValueError(
                f"return_bounds {list(self.return_bounds)}: write the lowest, then the highest return"
            )
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        """Values of the algorithm that does not run are a mistake, not a wish."""
        other = "dqn" if self.algorithm == "ppo" else "ppo"
        if getattr(self, other) != type(self).model_fields[other].default:
            raise ValueError(f"{other}: has no effect with algorithm {self.algorithm}; leave it out")
        return self

    @property
    def learner(self) -> PpoParams | DqnParams:
        """The values of the algorithm that is used."""
        return self.ppo if self.algorithm == "ppo" else self.dqn
