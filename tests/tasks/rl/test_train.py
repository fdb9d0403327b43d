"""An agent learns, is tested on fresh episodes beside a random one, and its policy can be used without its
learner.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from overnight import Artifact, RecordingRun
from overnight.errors import BadInput, Stopped
from tasks.rl.env import episode_seeds, play, spaces_of
from tasks.rl.policy import acting, build
from tasks.rl.predictor import Policy
from tasks.rl.sb3 import Evaluation, learner
from tasks.rl.train import AgentParams, train_agent
from tests.support.loaded import by_mlflow

ROOT = Path(__file__).resolve().parents[3]
SHORT = {"total_steps": 1500, "eval_every": 500, "eval_episodes": 3, "test_episodes": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordingRun, Artifact]:
    run = RecordingRun(tmp_path_factory.mktemp("agent"), seed=1)
    return run, train_agent.body(run, AgentParams(stop_at=500))


def agent(
    tmp_path: Path, name: str = "run", seed: int = 0, **params: object
) -> tuple[RecordingRun, Artifact]:
    (tmp_path / name).mkdir()
    run = RecordingRun(tmp_path / name, seed=seed)
    return run, train_agent.body(run, AgentParams.model_validate({**SHORT, **params}))


@pytest.mark.slow
def test_cartpole_is_solved(trained: tuple[RecordingRun, Artifact]) -> None:
    run, _ = trained
    assert run.last("test/mean_return") >= 475
    assert run.last("test/random_return") < 60
    assert run.curve("rollout/ep_rew_mean")[-1] > 2 * run.curve("rollout/ep_rew_mean")[0]
    assert run.curve("train/steps_per_s")
    assert run.curve("train/value_loss")
    assert {event["at_most"] for event in run.of("progress")} == {True}
    assert {Path(e["path"]).name for e in run.of("publish")} == {"returns.png", "lengths.png"}
    assert f"mean return {run.last('test/mean_return'):.1f}" in run.of("note")[-1]["text"]


def test_the_model_in_mlflow_plays_what_was_logged(
    trained: tuple[RecordingRun, Artifact], tmp_path: Path
) -> None:
    run, model = trained
    assert sorted(p.name for p in model.path.iterdir()) == ["meta.json", "weights.safetensors"]
    loaded = by_mlflow(model, tmp_path / "packed")

    def act(observations: np.ndarray) -> np.ndarray:
        return loaded.predict(observations)["action"].to_numpy()

    returns, lengths = play("CartPole-v1", episode_seeds(1, "test", 20), act, 10_000)
    assert returns.mean() == pytest.approx(run.last("test/mean_return"), abs=1e-6)
    assert (returns == lengths).all()  # a point a step
    losses = Policy(model.path).item_losses()
    assert len(losses.loss) == len(set(losses.item)) == 20
    assert losses.loss.mean() < 0.5  # 0 at the threshold of CartPole, 1 at random play


def test_observations_come_in_any_form(trained: tuple[RecordingRun, Artifact], tmp_path: Path) -> None:
    loaded = by_mlflow(trained[1], tmp_path / "packed")
    some = np.random.default_rng(0).normal(0, 0.05, (3, 4)).astype(np.float32)
    want = loaded.predict(some)
    assert list(want) == ["action", "probability_0", "probability_1"]
    assert want[["probability_0", "probability_1"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(3))
    for given in (
        some.tolist(),
        pd.DataFrame({"observation": list(some)}),
        pd.DataFrame(some, columns=[f"observation_{i}" for i in range(4)]).iloc[:, ::-1],
        pd.DataFrame(some, columns=["place", "speed", "angle", "turn"]),
        [{"observation": row} for row in some.tolist()],
        {"observation": some},
    ):
        pd.testing.assert_frame_equal(loaded.predict(given), want, check_exact=False, atol=1e-6)
    pd.testing.assert_frame_equal(loaded.predict(some[0]), want[:1], check_exact=False, atol=1e-6)
    assert len(loaded.predict(loaded.input_example)) == 1
    for given, why in (
        (some[:, :3], "is an array of"),
        (pd.DataFrame({"a": [1.0]}), "has 4 numbers"),
        (np.full((1, 4), np.nan), "no finite number"),
    ):
        with pytest.raises(MlflowException, match=why):
            loaded.predict(given)


def test_an_episode_is_played_and_shown(tmp_path: Path) -> None:
    _, model = agent(tmp_path, total_steps=64, eval_every=64, eval_episodes=1, test_episodes=1)
    table, (said,) = Policy(model.path).play(tmp_path)
    assert said == f"an episode of {len(table)} steps in CartPole-v1: return {len(table)}"
    assert table["total"].iloc[-1] == len(table) == table["step"].iloc[-1]
    assert set(table["action"]) <= {0, 1}
    with Image.open(tmp_path / "episode.gif") as image:
        assert image.format == "GIF"
        assert 1 < image.n_frames <= len(table) + 1  # equal pictures are one
    _, model = agent(tmp_path, "frozen", env="FrozenLake-v1", total_steps=64, eval_every=64)
    with pytest.raises(BadInput, match="whole numbers from 0 to 15"):
        Policy(model.path).predict(pd.DataFrame({"observation": [3, 16]}))
    _, model = agent(tmp_path, "pendulum", env="Pendulum-v1", total_steps=64, test_episodes=1)
    with pytest.raises(BadInput, match=r"set agent\.return_bounds"):
        Policy(model.path).item_losses()


def test_the_best_evaluation_is_kept_when_a_worse_one_follows(tmp_path: Path) -> None:
    run, params = (
        RecordingRun(tmp_path),
        AgentParams.model_validate({"ppo": {"hidden": []}, "eval_episodes": 5}),
    )
    evaluation, model = Evaluation(run, params, spaces_of(params)), learner(run, params)
    for steps, lean in (
        (100, 0.0),
        (200, 1.0),
        (300, 0.0),
    ):  # always left; to where the pole falls; always left
        model.num_timesteps = steps
        with torch.no_grad():
            model.policy.action_net.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [0, 0, lean, lean]]))
            model.policy.action_net.bias.zero_()
        evaluation.evaluate(model)
    means = run.curve("val/mean_return")
    assert means[1] > 5 * max(means[0], means[2])
    assert (evaluation.best_step, evaluation.best_return) == (200, means[1])
    assert evaluation.best.state_dict()["0.weight"].abs().sum() == 2


def test_equal_seeds_learn_equal_policies(tmp_path: Path) -> None:
    digests = [agent(tmp_path, name, seed)[1].digest for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_dqn_learns_too(tmp_path: Path) -> None:
    dqn = {
        "learning_starts": 500,
        "train_every": 64,
        "gradient_steps": 32,
        "hidden": [64, 64],
        "lr": 2e-3,
        "target_every": 200,
        "exploration": 0.5,
    }
    run, model = agent(
        tmp_path, algorithm="dqn", dqn=dqn, total_steps=5000, eval_every=1000, eval_episodes=10
    )
    assert run.curve("train/loss")
    assert max(run.curve("val/mean_return")) > 2 * run.last("test/random_return")
    answer = Policy(model.path).predict(pd.DataFrame(list(Policy(model.path).interface.example)))
    assert list(answer) == ["action"]  # values of actions are no probabilities


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_numbered_states(algorithm: str, tmp_path: Path) -> None:
    values = {"dqn": {"hidden": []}} if algorithm == "dqn" else {}
    run, model = agent(tmp_path, env="FrozenLake-v1", algorithm=algorithm, **values)
    assert len(Policy(model.path).predict(pd.DataFrame({"observation": [0, 15.0]}))) == 2
    assert 0 <= run.last("test/mean_return") <= 1


def test_continuous_actions_stay_in_their_bounds(tmp_path: Path) -> None:
    _, model = agent(tmp_path, env="Pendulum-v1", test_episodes=2)
    answer = Policy(model.path).predict(pd.DataFrame({"observation": [np.zeros(3)]}))
    assert list(answer) == ["action_0"]
    spaces = spaces_of(AgentParams(env="Pendulum-v1"))
    net = build(spaces)
    torch.nn.init.constant_(net[-1].bias, 100.0)
    assert acting(net, spaces)(np.zeros((2, 3), np.float32)).tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"env": "CartPol-v1"}, "'CartPol-v1'.*did you mean 'CartPole-v1'"),
        ({"env": "LunarLander-v2"}, "did you mean 'LunarLander-v3'"),
        ({"env": "nowhere:Thing-v0"}, "No module named 'nowhere'"),
        ({"env": "not an id"}, "Malformed"),
        ({"env": "Pendulum-v1", "algorithm": "dqn"}, "dqn chooses among discrete actions.*use ppo"),
        ({"env": "CarRacing-v3"}, "observations of 'CarRacing-v3' are Box"),
        ({"env": "Blackjack-v1"}, "observations of 'Blackjack-v1' are Tuple"),
    ],
)
def test_what_cannot_be_learnt_is_said(values: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        agent(tmp_path, **values)


def test_it_stops_when_asked(tmp_path: Path) -> None:
    run = RecordingRun(tmp_path)
    run.should_stop = lambda: True
    with pytest.raises(Stopped):
        train_agent.body(run, AgentParams(total_steps=10_000_000))


def test_episodes_for_choosing_and_for_testing_differ() -> None:
    some = {
        (seed, purpose): set(episode_seeds(seed, purpose, 50).tolist())
        for seed in (0, 1)
        for purpose in ("val", "test")
    }
    assert len(set.union(*some.values())) == 200
    assert episode_seeds(0, "test", 3).tolist() == episode_seeds(0, "test", 3).tolist()


def test_an_episode_without_an_end_is_ended() -> None:
    returns, lengths = play("CartPole-v1", np.arange(4), lambda seen: (seen[:, 2] > 0).astype(int), 7)
    assert lengths.tolist() == returns.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("name", ["agent", "lunarlander"])
def test_the_configs_load_and_run(name: str, tmp_path: Path) -> None:
    from flows.agent import Agent

    params = Agent.load(
        ROOT / "configs" / f"{name}.yaml",
        ["agent.total_steps=64", "agent.test_episodes=1", "agent.eval_episodes=1"],
    ).agent
    small = params.ppo.model_copy(update={"n_steps": 16, "n_envs": 2, "batch": 16})
    run = RecordingRun(tmp_path)
    train_agent.body(run, params.model_copy(update={"ppo": small}))
    assert np.isfinite(run.last("test/mean_return"))
