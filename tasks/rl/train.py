"""Reinforcement learning with Stable-Baselines3.

PPO (Schulman et al. 2017) or DQN (Mnih et al. 2015).
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight import Artifact, DataSpec, Run, step
from overnight.errors import Diverged
from overnight.memory.formulas import Formula
from overnight.paths import shown
from overnight.predictor import Column, Interface, Type
from tasks.rl.env import EnvironmentFailed, at_random, check, episode_seeds, make, memory, play, spaces_of
from tasks.rl.params import AgentParams
from tasks.shared import figures
from tasks.shared.threads import one_thread

if TYPE_CHECKING:
    from tasks.rl.sb3 import Evaluation

__all__ = ["AgentParams", "train_agent"]


def agent_peak(params: AgentParams) -> Formula:
    """Host memory of the nets and the remembered steps; the learner does not use the card."""
    nets, remembered, batch = memory(params)
    why = f"nets {nets:,.1f} MiB, remembered steps {remembered:,.1f} MiB, on the processor"
    return Formula(host_mib=nets + remembered + batch, why=why)


@step(peak=agent_peak)
def train_agent(run: Run, params: AgentParams) -> Artifact:
    """Train an agent; evaluations during training pick the policy, fresh episodes at the end test it.

    Out: artifact "model", which tells the action for an observation. Runs on the CPU, where a
    small MLP is fastest. Logs rollout/ep_rew_mean and rollout/ep_len_mean (of the last 100 episodes), losses,
    train/steps_per_s, val/mean_return; at the end test/mean_return and test/std_return beside
    test/random_return: random actions on the same episodes. Pictures: returns, lengths. Raises ConfigError:
    unknown environment, one that Gymnasium's check refuses, or spaces that the algorithm or an MLP cannot
    handle; Diverged for a reward, an observation, a return or a loss that is not finite, and
    EnvironmentFailed, with the agent so far kept.
    """
    from tasks.rl.sb3 import Evaluation, learner

    spaces = spaces_of(params)
    harmless = check(params.env, params.kwargs)
    if harmless:
        run.note(f"Gymnasium's check: {harmless}")
    with one_thread():
        model = learner(run, params)
        evaluation = Evaluation(run, params, spaces)
        try:
            _learn(params, model, evaluation)
            _report(run, params, spaces, evaluation)
        except (Diverged, EnvironmentFailed) as error:
            said = "no agent is kept: none had been evaluated, and the weights are not finite"
            if evaluation.keep_so_far(model):
                kept = _saved(run, params, spaces, evaluation)
                said = f"the agent of step {evaluation.best_step:,} is kept in {shown(kept.path)}"
            raise type(error)(f"{error}; {said}") from error
    return _saved(run, params, spaces, evaluation)


def _learn(params: AgentParams, model: Any, evaluation: "Evaluation") -> None:
    try:
        model.learn(params.total_steps, callback=evaluation)
    except ValueError as error:
        if not re.search(r"Expected (parameter|value argument) .* to satisfy the constraint", str(error)):
            raise
        raise Diverged(
            f"the policy of {params.algorithm} in {params.env} puts out no finite numbers after "
            f"{model.num_timesteps:,} steps; lower lr, or the size of the rewards and observations"
        ) from error
    evaluation.evaluate(model)


def _saved(run: Run, params: AgentParams, spaces: dict[str, Any], evaluation: "Evaluation") -> Artifact:
    example = make(params.env, params.kwargs).reset(seed=0)[0]
    spec = DataSpec(shape=np.shape(example), dtype=str(np.asarray(example).dtype))
    config = {
        **spaces,
        "env": params.env,
        "kwargs": params.kwargs,
        "longest_episode": params.longest_episode,
        "episodes": params.test_episodes,
        "return_bounds": params.return_bounds,
    }
    interface = _interface(params, spaces, example)
    return run.save_model(
        "tasks.rl.predictor:predictor", evaluation.best.state_dict(), config, spec, interface
    )


def _interface(params: AgentParams, spaces: dict[str, Any], example: Any) -> Interface:
    """Observations in, actions out, with a probability for each where the policy has them."""
    actions = spaces.get("actions")
    if actions is None:
        outputs = [Column(name=f"action_{i}", type="double") for i in range(len(spaces["low"]))]
    else:
        outputs = [Column(name="action", type="long")]
        many = actions if params.algorithm == "ppo" else 0
        outputs += [Column(name=f"probability_{action}", type="double") for action in range(many)]
    number: Type = "long" if "states" in spaces else "double"
    return Interface(
        kind="observations",
        about=f"{params.algorithm.upper()} on {params.env}",
        inputs=(Column(name="observation", type=number, dimensions=(len(spaces["shape"]),)),),
        outputs=tuple(outputs),
        example=({"observation": np.asarray(example).tolist()},),
    )


def _report(run: Run, params: AgentParams, spaces: dict[str, Any], evaluation: "Evaluation") -> None:
    """Test the policy that was kept, and a random one, on the same fresh episodes."""
    from tasks.rl.policy import acting

    seeds = episode_seeds(run.seed, "test", params.test_episodes)
    act, random = acting(evaluation.best, spaces), at_random(params.env, run.seed, params.kwargs)
    returns, lengths = play(params.env, seeds, act, params.longest_episode, params.kwargs)
    chance, _ = play(params.env, seeds, random, params.longest_episode, params.kwargs)
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
