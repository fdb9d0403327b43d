"""The environment: made, described and played in."""

import difflib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from overnight.errors import ConfigError
from overnight.memory.formulas import MIB
from tasks.rl.params import AgentParams

FLOAT = 4  # bytes
FRAMES, HIGHEST = 200, 200  # of a recorded episode at most, and about how many pixels high
Act = Callable[[np.ndarray], np.ndarray]  # observations (N, ...) to actions (N,) or (N, A)


def make(env: str, **options: Any) -> Any:
    """The environment of that id, or ConfigError with the nearest one."""
    import gymnasium

    try:
        return gymnasium.make(env, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(f"agent.env: {env!r} needs a package that is not installed: {error}") from None
    except (gymnasium.error.Error, ImportError) as error:
        close = difflib.get_close_matches(env, list(gymnasium.registry), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"agent.env: {env!r} is not an environment that Gymnasium knows here; {hint}({error})"
        ) from None


def spaces_of(params: AgentParams) -> dict[str, Any]:
    """What the net is built from, as JSON: sizes of observation and action, layers, algorithm."""
    from gymnasium.spaces import Box, Discrete

    env = make(params.env)
    seen, act = env.observation_space, env.action_space
    env.close()
    if isinstance(seen, Box) and len(seen.shape) < 3:
        observation: dict[str, Any] = {"shape": list(seen.shape)}
    elif isinstance(seen, Discrete) and seen.start == 0:
        observation = {"shape": [], "states": int(seen.n)}
    else:
        raise ConfigError(
            f"agent.env: observations of {params.env!r} are {seen}; this step takes vectors (Box) or "
            "numbers (Discrete)"
        )
    if isinstance(act, Discrete) and act.start == 0:
        action: dict[str, Any] = {"actions": int(act.n)}
    elif isinstance(act, Box) and act.is_bounded() and len(act.shape) == 1 and params.algorithm == "ppo":
        action = {"low": act.low.tolist(), "high": act.high.tolist()}
    elif params.algorithm == "dqn":
        raise ConfigError(
            f"agent.algorithm: dqn chooses among discrete actions, those of {params.env!r} are {act}; use ppo"
        )
    else:
        raise ConfigError(
            f"agent.env: actions of {params.env!r} are {act}; ppo here takes Discrete or a bounded vector "
            "(Box)"
        )
    return {"algorithm": params.algorithm, "hidden": params.learner.hidden, **observation, **action}


def memory(params: AgentParams) -> tuple[float, float, float]:
    """MiB of the learner on the host: its two nets, the steps that it remembers, and a batch.

    The nets, each with gradients and two moments, are of actor and critic, or of values and their target.
    A step of a replay buffer has two observations, one of a rollout has one, and action, return, advantage,
    value and probability as single numbers beside it.
    """
    env = make(params.env)
    seen, act = env.observation_space, env.action_space
    env.close()
    inside = int(getattr(seen, "n", 0)) or int(np.prod(seen.shape, dtype=int))
    outside = int(getattr(act, "n", 0)) or int(np.prod(act.shape, dtype=int))
    values, bytes_ = params.learner, int(np.prod(seen.shape, dtype=int)) * seen.dtype.itemsize
    last = outside if params.algorithm == "dqn" else 1
    towers = [[inside, *values.hidden, end] for end in (outside, last)]
    weights = sum((a + 1) * b for net in towers for a, b in pairwise(net))
    units = sum(sum(net[1:]) for net in towers)
    if params.algorithm == "dqn":
        remembered = params.dqn.buffer * (2 * bytes_ + 8 + 2 * FLOAT)
    else:
        action = int(np.prod(act.shape, dtype=int)) * FLOAT
        remembered = values.n_envs * params.ppo.n_steps * (bytes_ + action + 5 * FLOAT)
    batch = values.batch * (bytes_ + 3 * FLOAT * units)
    return 4 * FLOAT * weights / MIB, remembered / MIB, batch / MIB


def play(env: str, seeds: np.ndarray, act: Act, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths (episodes,) of one episode for each seed, all played side by side."""
    worlds = [make(env) for _ in seeds]
    now = [world.reset(seed=int(seed))[0] for world, seed in zip(worlds, seeds, strict=True)]
    returns, lengths, over = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    running = list(range(len(seeds)))
    while running:
        for i, action in zip(running, act(np.stack([now[i] for i in running])), strict=True):
            now[i], reward, terminated, truncated, _ = worlds[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            over[i] = terminated or truncated or lengths[i] >= longest
        running = [i for i in running if not over[i]]
    for world in worlds:
        world.close()
    return returns, lengths


def record(
    env: str, seed: int, act: Act, longest: int, draws: bool = True
) -> tuple[list[tuple[Any, float]], list[np.ndarray]]:
    """Play an episode: its actions with their rewards, and pictures uint8 (H, W, 3) of at most FRAMES steps.

    draws: whether pictures are made. Raises ConfigError where the environment draws none.
    """
    if draws and "rgb_array" not in make(env).metadata.get("render_modes", ()):
        raise ConfigError(f"{env} draws no pictures (rgb_array is none of its render modes)")
    world = make(env, render_mode="rgb_array") if draws else make(env)
    now, _ = world.reset(seed=seed)
    steps = list[tuple[Any, float]]()
    frames = [_frame(world)] if draws else []
    every, over = 1, False
    while not over:
        action = act(np.asarray(now)[None])[0]
        now, reward, terminated, truncated, _ = world.step(action)
        steps.append((action, float(reward)))
        over = terminated or truncated or len(steps) >= longest
        if draws and (over or len(steps) % every == 0):
            frames.append(_frame(world))
        if len(frames) > FRAMES:
            frames, every = frames[::2], 2 * every
    world.close()
    return steps, frames


def _frame(world: Any) -> np.ndarray:
    """A picture of the environment as it is. Raises ConfigError where what draws it is not installed."""
    import gymnasium

    try:
        frame = world.render()
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"the renderer is missing: {error}") from None
    if frame is None:
        raise ConfigError("the environment draws no pictures")
    return np.asarray(frame)[:: max(1, len(frame) // HIGHEST), :: max(1, len(frame) // HIGHEST)]


def episode_seeds(seed: int, purpose: str, episodes: int) -> np.ndarray:
    """Seeds of evaluation episodes: fixed, different for each purpose, none used in training."""
    found: np.ndarray = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(episodes)
    return found


def at_random(env: str, seed: int) -> Act:
    space = make(env).action_space
    space.seed(seed)
    return lambda observations: np.stack([space.sample() for _ in observations])
