"""Reinforcement learning with Stable-Baselines3.

PPO (Schulman et al. 2017) or DQN (Mnih et al. 2015).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight import Artifact, DataSpec, Run, step
from overnight.memory.formulas import Formula
from tasks.rl.env import Act, at_random, episode_seeds, make, memory, play, spaces_of
from tasks.rl.params import AgentParams
from tasks.shared import figures
from tasks.shared.threads import one_thread

if TYPE_CHECKING:
    from tasks.rl.sb3 import Evaluation

__all__ = ["AgentParams", "predictor", "train_agent"]


def agent_peak(params: AgentParams) -> Formula:
    """Host memory of the nets and the remembered steps; the learner does not use the card."""
    nets, remembered, batch = memory(params)
    why = f"nets {nets:,.1f} MiB, remembered steps {remembered:,.1f} MiB, on the processor"
    return Formula(host_mib=nets + remembered + batch, why=why)


@step(peak=agent_peak)
def train_agent(run: Run, params: AgentParams) -> Artifact:
    """Train an agent; evaluations during training pick the policy, fresh episodes at the end test it.

    Out: artifact "model" whose predictor maps observations (N, ...) to actions. Runs on the CPU, where a
    small MLP is fastest. Logs rollout/ep_rew_mean and rollout/ep_len_mean (of the last 100 episodes), losses,
    train/steps_per_s, val/mean_return; at the end test/mean_return and test/std_return beside
    test/random_return: random actions on the same episodes. Pictures: returns, lengths. Raises ConfigError:
    unknown environment, or spaces that the algorithm or an MLP cannot handle.
    """
    from tasks.rl.sb3 import Evaluation, learner

    spaces = spaces_of(params)
    with one_thread():
        model = learner(run, params)
        evaluation = Evaluation(run, params, spaces)
        model.learn(params.total_steps, callback=evaluation)
        evaluation.evaluate(model)
        _report(run, params, spaces, evaluation)
    example = np.stack([make(params.env).reset(seed=i)[0] for i in range(4)])
    spec = DataSpec(shape=example.shape[1:], dtype=str(example.dtype))
    return run.save_model("tasks.rl.train:predictor", evaluation.best.state_dict(), spaces, spec, example)


def predictor(folder: Path) -> Act:
    """Observations (N, ...) to actions: (N,) of numbers or (N, A) of vectors, by the model in that folder."""
    from tasks.rl import policy

    return policy.predictor(folder)


def _report(run: Run, params: AgentParams, spaces: dict[str, Any], evaluation: "Evaluation") -> None:
    """Test the policy that was kept, and a random one, on the same fresh episodes."""
    from tasks.rl.policy import acting

    seeds = episode_seeds(run.seed, "test", params.test_episodes)
    returns, lengths = play(params.env, seeds, acting(evaluation.best, spaces), params.longest_episode)
    chance, _ = play(params.env, seeds, at_random(params.env, run.seed), params.longest_episode)
    scores = {
        "mean_return": returns.mean(),
        "std_return": returns.std(),
        "random_return": chance.mean(),
        "mean_length": lengths.mean(),
    }
    run.metrics({f"test/{name}": float(value) for name, value in scores.items()}, evaluation.evaluated_at)
    run.param("best_step", evaluation.best_step)
    _pictures(run, params, evaluation, float(chance.mean()))
    run.note(
        f"{params.algorithm.upper()} on {params.env}: mean return {returns.mean():.1f} +- "
        f"{returns.std():.1f} over {len(seeds)} fresh episodes (random {chance.mean():.1f}), "
        f"policy of step {evaluation.best_step:,} of {evaluation.evaluated_at:,}"
    )


def _pictures(run: Run, params: AgentParams, evaluation: "Evaluation", chance: float) -> None:
    steps, rewards, lengths = ([row[i] for row in evaluation.rollouts] for i in range(3))
    at, means, spread = ([row[i] for row in evaluation.evaluations] for i in range(3))
    lines = {"training, last 100 episodes": (steps, rewards), "evaluation": (at, means)}
    title = f"{params.algorithm.upper()} on {params.env}"
    run.picture(
        "returns",
        figures.curves(
            lines, "environment steps", "return", title, {"evaluation": spread}, {"random": chance}
        ),
    )
    run.picture(
        "lengths",
        figures.curves(
            {"training, last 100 episodes": (steps, lengths)}, "environment steps", "episode length", title
        ),
    )
