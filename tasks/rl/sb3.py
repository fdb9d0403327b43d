"""The learner of Stable-Baselines3, and the callback that logs and evaluates it."""

import math
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from overnight import Run
from overnight.errors import Diverged
from tasks.rl.env import called, check_finite, episode_seeds, make, play
from tasks.rl.params import AgentParams, DqnParams, PpoParams
from tasks.rl.policy import acting, build, policy_of

LOSSES = (
    "loss",
    "policy_gradient_loss",
    "value_loss",
    "entropy_loss",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
)


SUMS = LOSSES[:4]  # of these one that is not finite has spoilt the weights


class Checked(VecEnvWrapper):
    """Environments of which every number is finite. Raises NotFinite, EnvironmentFailed."""

    def __init__(self, worlds: VecEnv, env: str) -> None:
        super().__init__(worlds)
        self.env, self.steps = env, 0

    def reset(self) -> Any:
        seen = called(self.env, self.steps, self.venv.reset)
        check_finite("an observation", seen, self.env, self.steps)
        return seen

    def step_wait(self) -> Any:
        self.steps += self.num_envs
        seen, rewards, over, more = called(self.env, self.steps, self.venv.step_wait)
        check_finite("a reward", rewards, self.env, self.steps)
        if over.any():  # what is seen then is of the next episode
            last = [i.get("terminal_observation", now) for i, now in zip(more, seen, strict=True)]
            check_finite("an observation", np.stack(last), self.env, self.steps)
        check_finite("an observation", seen, self.env, self.steps)
        return seen, rewards, over, more


def learner(run: Run, params: AgentParams) -> Any:
    """An SB3 model with the values of the params, on the CPU, with Adam in its fused form."""
    values = params.learner
    worlds = make_vec_env(lambda: make(params.env, params.kwargs), n_envs=values.n_envs, seed=run.seed)
    shared: dict[str, Any] = {
        "learning_rate": _falling(values.lr, values.anneal),
        "gamma": values.gamma,
        "policy_kwargs": {"net_arch": list(values.hidden), "optimizer_kwargs": {"fused": True}},
        "seed": run.seed,
        "device": "cpu",
    }
    method: Any = PPO if params.algorithm == "ppo" else DQN
    model = method(
        "MlpPolicy",
        Checked(worlds, params.env),
        **shared,
        **(_ppo(params.ppo) if params.algorithm == "ppo" else _dqn(params.dqn)),
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    run.param("parameters", sum(p.numel() for p in model.policy.parameters()))
    return model


def _falling(start: float, anneal: bool) -> Any:
    """A value, or a function of the share of the training that is left."""
    return (lambda left: start * left) if anneal else start


def _ppo(values: PpoParams) -> dict[str, Any]:
    return {
        "n_steps": values.n_steps,
        "batch_size": values.batch,
        "n_epochs": values.epochs,
        "gae_lambda": values.gae_lambda,
        "clip_range": _falling(values.clip_range, values.anneal),
        "ent_coef": values.entropy,
    }


def _dqn(values: DqnParams) -> dict[str, Any]:
    return {
        "buffer_size": values.buffer,
        "learning_starts": values.learning_starts,
        "batch_size": values.batch,
        "train_freq": max(1, values.train_every // values.n_envs),
        "gradient_steps": values.gradient_steps,
        "target_update_interval": values.target_every,
        "exploration_fraction": values.exploration,
        "exploration_final_eps": values.epsilon,
    }


class Evaluation(BaseCallback):
    """After every step of the environments: logs, evaluates, keeps the best policy, ends training."""

    def __init__(self, run: Run, params: AgentParams, spaces: dict[str, Any]) -> None:
        super().__init__()
        self.run = run
        self.params = params
        self.spaces = spaces
        self.best = build(spaces)
        self.best_return = -math.inf
        self.best_step = 0
        self.rollouts: list[tuple[int, float, float]] = []
        self.evaluations: list[tuple[int, float, float]] = []
        self.logged_at = 0
        self.evaluated_at = 0
        self.since = time.perf_counter()
        self.progress_s = self.since

    def _on_rollout_start(self) -> None:
        """Each update ends before one. Raises Diverged for a loss that is not finite."""
        found = self.model.logger.name_to_value
        for name in SUMS:
            value = float(found.get(f"train/{name}", 0.0))
            if not math.isfinite(value):
                raise Diverged(
                    f"{name} of {self.params.algorithm} in {self.params.env} is {value} after "
                    f"{self.model.num_timesteps:,} steps; lower lr, or the size of the rewards"
                )

    def _on_step(self) -> bool:
        """Log and evaluate when it is time; False ends the training."""
        model, params = self.model, self.params
        done = int(model.num_timesteps)
        if done - self.logged_at >= max(params.total_steps // 200, 1):
            self._log(model, done)
        if done - self.evaluated_at >= params.eval_every:
            self.evaluate(model)
        if time.perf_counter() - self.progress_s > 0.5:
            self.progress_s = time.perf_counter()
            best = f"best return {self.best_return:.1f}" if self.evaluations else ""
            so_far = min(done, params.total_steps)
            self.run.progress(so_far, params.total_steps, best, at_most=params.stop_at is not None)
        solved = params.stop_at is not None and self.evaluations and self.evaluations[-1][1] >= params.stop_at
        return not solved

    def _log(self, model: Any, done: int) -> None:
        """Episodes lately, losses of the last update, speed."""
        now = time.perf_counter()
        values = {"train/steps_per_s": (done - self.logged_at) / max(now - self.since, 1e-9)}
        self.logged_at, self.since = done, now
        found = model.logger.name_to_value
        values |= {f"train/{name}": found[f"train/{name}"] for name in LOSSES if f"train/{name}" in found}
        episodes = list(model.ep_info_buffer)
        if episodes:
            reward, length = (float(np.mean([e[key] for e in episodes])) for key in "rl")
            values |= {"rollout/ep_rew_mean": reward, "rollout/ep_len_mean": length}
            self.rollouts.append((done, reward, length))
        self.run.metrics(values, done)

    def evaluate(self, model: Any) -> None:
        """Play the evaluation episodes with the policy as it is now; of equals the later one is kept."""
        params, done = self.params, int(model.num_timesteps)
        if done == self.evaluated_at:
            return
        self.evaluated_at, net = done, policy_of(model, self.spaces)
        if not _is_finite(net):
            raise Diverged(
                f"weights of {params.algorithm} in {params.env} are not finite after {done:,} steps; "
                "lower lr, or the size of the rewards"
            )
        seeds = episode_seeds(self.run.seed, "val", params.eval_episodes)
        act = acting(net, self.spaces)
        returns, lengths = play(params.env, seeds, act, params.longest_episode, params.kwargs)
        mean = float(returns.mean())
        self.evaluations.append((done, mean, float(returns.std())))
        self.run.metrics(
            {
                "val/mean_return": mean,
                "val/std_return": float(returns.std()),
                "val/mean_length": lengths.mean(),
            },
            done,
        )
        if mean >= self.best_return or not self.best_step:
            self.best, self.best_return, self.best_step = net, mean, done

    def keep_so_far(self, model: Any) -> bool:
        """Whether there is an agent to keep: the best one evaluated, else that of now if it is finite."""
        if not self.best_step:
            self.best, self.best_step = policy_of(model, self.spaces), int(model.num_timesteps)
        return _is_finite(self.best)


def _is_finite(net: torch.nn.Module) -> bool:
    return all(bool(weight.isfinite().all()) for weight in net.parameters())
