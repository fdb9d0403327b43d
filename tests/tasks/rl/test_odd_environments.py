"""Environments as people write them: what is no number, no environment or fails is named, the agent is kept."""

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from overnight import RecordingRun
from overnight.artifact import Artifact
from overnight.errors import BadInput, Diverged, OvernightError
from tasks.rl.env import episode_seeds
from tasks.rl.predictor import Policy
from tasks.rl.train import AgentParams, train_agent

SHORT = {"total_steps": 200, "eval_every": 64, "eval_episodes": 2, "test_episodes": 2}
PPO = {"n_steps": 16, "n_envs": 2, "batch": 16, "epochs": 1, "hidden": [8]}
DQN = {"learning_starts": 16, "train_every": 16, "gradient_steps": 2, "batch": 16, "hidden": [8]}


class Line(gymnasium.Env):
    """A walk of ten steps; the reward or observation of step `at` is `value`, of the episodes of `seeds` alone."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, what="", at=1, value=float("nan"), seeds=(), scale=1.0) -> None:
        self.what, self.at, self.value, self.seeds, self.scale = what, at, float(value), set(seeds), scale
        self.total = 0

    def seen(self, odd: bool = False) -> np.ndarray:
        found = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        found[1] = self.value if odd else found[1]
        return found

    def is_odd(self, what: str) -> bool:
        return self.what == what and self.total == self.at and (not self.seeds or self.seed in self.seeds)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.n = seed, 0
        self.total *= not self.seeds
        return self.seen(self.what == "observation" and self.at == 0 and self.is_odd("observation")), {}

    def step(self, action):
        self.n, self.total = self.n + 1, self.total + 1
        if self.is_odd("error"):
            raise KeyError("wheel")
        reward = self.value if self.is_odd("reward") else self.scale
        return self.seen(self.is_odd("observation")), reward, self.n >= 10, False, {}


class Continuous(Line):
    action_space = spaces.Box(-1, 1, (2,), np.float32)


class OldStep(Line):
    def step(self, action):
        return (*super().step(action)[:3], {})


class OldReset(Line):
    def reset(self):
        return super().reset()[0]


class ResetAlone(Line):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Shape(Line):
    def seen(self, odd=False):
        return np.zeros(4, np.float32)


class ShapeOfStep(Line):
    def step(self, action):
        return (np.zeros((3, 1), np.float32), *super().step(action)[1:])


class TextReward(Line):
    def step(self, action):
        seen, _, *more = super().step(action)
        return (seen, "1", *more)


class NoSpace(Line):
    observation_space = None


class Needs(Line):
    def __init__(self, track) -> None:
        super().__init__()


class Fails(Line):
    def __init__(self) -> None:
        raise RuntimeError("no display")


class Ends(Line):
    def step(self, action):
        return next(iter(()))


class Blind(Line):
    observation_space = spaces.Box(-1, 1, (0,), np.float32)

    def seen(self, odd=False):
        return np.zeros(0, np.float32)


class NoEnvironment:
    pass


class Unseeded(Line):
    def seen(self, odd=False):
        return np.random.default_rng().uniform(-1, 1, 3).astype(np.float32)


class Doubles(Line):
    def seen(self, odd=False):
        return super().seen().astype(np.float64)


class Beyond(Line):
    observation_space = spaces.Box(-0.01, 0.01, (3,), np.float32)


class Reused(Line):
    def step(self, action):
        found = super().step(action)
        self.kept = getattr(self, "kept", np.zeros(3, np.float32))
        self.kept[:] = found[0]
        return (self.kept, *found[1:])


@pytest.fixture
def made():
    """Register a class as an environment; its id comes back."""
    known = set(gymnasium.registry)

    def register(kind: type | str) -> str:
        if isinstance(kind, str):
            gymnasium.register("none_of_this-v0", entry_point=kind)
            return "none_of_this-v0"
        gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)
        return f"{kind.__name__}-v0"

    yield register
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


def trained(tmp_path: Path, env: str, kwargs=None, algorithm: str = "ppo", **values) -> RecordingRun:
    run = RecordingRun(tmp_path)
    learner = {"ppo": PPO} if algorithm == "ppo" else {"dqn": DQN}
    params = {**SHORT, **learner, "algorithm": algorithm, "env": env, "kwargs": kwargs or {}, **values}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_agent.body(run, AgentParams.model_validate(params))
    return run


def kept(tmp_path: Path, error: OvernightError) -> Policy:
    """The agent that is said to be kept."""
    assert "is kept in" in str(error)
    path = tmp_path / "out" / "model"
    policy = Policy(Artifact(kind="model", path=path, digest="").path)
    assert all(bool(w.isfinite().all()) for w in policy.net.parameters())
    return policy


@pytest.mark.parametrize("algorithm", ["ppo", "dqn", "continuous"])
@pytest.mark.parametrize(
    ("what", "at", "value"),
    [
        ("reward", 3, "nan"),
        ("reward", 10, "inf"),
        ("reward", 70, "nan"),
        ("observation", 0, "nan"),
        ("observation", 3, "-inf"),
        ("observation", 10, "nan"),
        ("observation", 70, "inf"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_ends_the_training_by_name(
    tmp_path, made, algorithm: str, what: str, at: int, value: str
) -> None:
    """At 10 an episode ends; 0 is its start, before any step."""
    env = made(Continuous if algorithm == "continuous" else Line)
    method = "ppo" if algorithm == "continuous" else algorithm
    with pytest.raises(Diverged) as caught:
        trained(tmp_path, env, {"what": what, "at": at, "value": value}, method, eval_every=1000)
    said = str(caught.value)
    count = at * (2 if method == "ppo" else 1)
    assert f"{what} of {env} is {value} at step {count} (environment 1 of" in said
    assert caught.value.child_code == caught.value.exit_code == 1
    kept(tmp_path, caught.value)


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
@pytest.mark.parametrize(("what", "value"), [("reward", "inf"), ("observation", "nan")])
@pytest.mark.parametrize("purpose", ["val", "test"])
def test_the_same_in_an_evaluation(tmp_path, made, algorithm, value: str, what: str, purpose: str) -> None:
    seeds = episode_seeds(0, purpose, 2).tolist()
    kwargs = {"what": what, "at": 4, "value": value, "seeds": seeds[1:]}
    with pytest.raises(Diverged) as caught:
        trained(tmp_path, made(Line), kwargs, algorithm, stop_at=5.0)
    assert f"{what} in an evaluation of Line-v0 is {value} at step 4 (environment 2 of 2)" in str(
        caught.value
    )
    kept(tmp_path, caught.value)


@pytest.mark.parametrize(("algorithm", "scale"), [("ppo", 1e36), ("ppo", -1e37), ("dqn", 3e38)])
def test_a_loss_that_is_not_finite_ends_the_training_by_name(tmp_path, made, algorithm, scale: float) -> None:
    """Rewards that are finite, and whose squares are not."""
    with pytest.raises(Diverged) as caught:
        trained(tmp_path, made(Line), {"scale": scale}, algorithm, eval_every=20)
    said = str(caught.value)
    assert f"of {algorithm} in Line-v0" in said
    assert "lower lr, or the size of the rewards" in said


def test_a_return_that_is_no_number_is_never_a_solution(tmp_path, made) -> None:
    seeds = episode_seeds(0, "val", 2).tolist()
    with pytest.raises(Diverged, match="reward in an evaluation"):
        trained(tmp_path, made(Line), {"what": "reward", "at": 2, "seeds": seeds}, stop_at=1.0)


@pytest.mark.parametrize("at", [1, 30])
def test_an_environment_that_fails_is_named_and_the_agent_kept(tmp_path, made, at: int) -> None:
    kwargs = {"what": "error", "at": at}
    with pytest.raises(OvernightError) as caught:
        trained(tmp_path, made(Line), kwargs, eval_every=16)
    if at == 1:  # found by the check
        assert "'Line-v0' is no environment as Gymnasium has them: KeyError: 'wheel'" in str(caught.value)
    else:
        assert "Line-v0 failed at step 60: KeyError: 'wheel'; mend the environment" in str(caught.value)
        kept(tmp_path, caught.value)


@pytest.mark.parametrize(
    ("kind", "kwargs", "said"),
    [
        (OldStep, {}, "the step of 'OldStep-v0' returns 4 values, expected 5"),
        (OldReset, {}, "'OldReset-v0' is no environment as Gymnasium has them: TypeError: .*seed"),
        (ResetAlone, {}, "The result returned by `env.reset.* was not a tuple"),
        (Shape, {}, r"the reset of 'Shape-v0' returns an observation of shape \(4,\), its .* of \(3,\)"),
        (ShapeOfStep, {}, r"the step of 'ShapeOfStep-v0' returns an observation of shape \(3, 1\)"),
        (TextReward, {}, "the reward of 'TextReward-v0' is '1', expected one number"),
        (NoSpace, {}, "'NoSpace-v0' cannot be made with no agent.kwargs: TypeError: observation space"),
        (Needs, {}, "'Needs-v0' cannot be made with no agent.kwargs: TypeError: .*track"),
        (Needs, {"trak": 1}, r"'Needs-v0' cannot be made with agent.kwargs \{'trak': 1\}: TypeError: .*trak"),
        (Fails, {}, "'Fails-v0' cannot be made with no agent.kwargs: RuntimeError: no display"),
        (Ends, {}, "'Ends-v0' is no environment as Gymnasium has them: StopIteration"),
        (Blind, {}, r"observations of 'Blind-v0' are Box\(.*this step takes vectors"),
        ("overnight_none:Made", {}, "'none_of_this-v0' cannot be made: No module named 'overnight_none'"),
        (NoEnvironment, {}, "'NoEnvironment-v0' cannot be made .* must inherit from the gymnasium.Env"),
    ],
)
def test_what_is_no_environment_is_refused_by_name(tmp_path, made, kind, kwargs, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        trained(tmp_path, made(kind), kwargs)


@pytest.mark.parametrize("kind", [Unseeded, Doubles, Beyond, Reused])
def test_what_does_no_harm_is_noted(tmp_path, made, kind) -> None:
    run = trained(tmp_path, made(kind), total_steps=32)
    assert [
        n["text"] for n in run.of("note") if n["text"].startswith(f"Gymnasium's check: {kind.__name__}-v0: ")
    ]


def test_arguments_reach_the_environment_wherever_it_is_made(tmp_path) -> None:
    run = trained(tmp_path, "FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}, total_steps=32)
    policy = Policy(tmp_path / "out" / "model")
    assert policy.spaces["states"] == 64
    assert policy.kwargs == {"map_name": "8x8", "is_slippery": False}
    table, _ = policy.play(tmp_path)
    assert len(table)
    assert len(policy.item_losses().loss) == 2
    assert run.last("test/mean_return") >= 0
