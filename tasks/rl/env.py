"""The environment: made, described and played in."""

import difflib
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from overnight.errors import FAILURES, ConfigError, Diverged, OvernightError, one_line
from overnight.memory.formulas import MIB
from tasks.rl.params import AgentParams

FLOAT = 4  # bytes
FRAMES, HIGHEST = 200, 200  # of a recorded episode at most, and about how many pixels high
# what Gymnasium's check finds where learning is possible all the same
HARMLESS = re.compile(r"determin|not within the observation space|share an object", re.IGNORECASE)
Act = Callable[[np.ndarray], np.ndarray]  # observations (N, ...) to actions (N,) or (N, A)


class NotFinite(Diverged):
    """A reward or an observation of an environment, or a return, is nan or infinite."""


class EnvironmentFailed(OvernightError):
    """The code of an environment raised while an agent acted in it."""


def make(env: str, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The environment of that id, its constructor given kwargs. Raises ConfigError, with the nearest id."""
    import gymnasium

    try:
        return gymnasium.make(env, **(kwargs or {}), **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(f"agent.env: {env!r} needs a package that is not installed: {error}") from None
    except (gymnasium.error.Error, ImportError) as error:
        if env in gymnasium.registry:
            raise ConfigError(
                f"agent.env: {env!r} cannot be made: {error}; install or mend its module"
            ) from None
        close = difflib.get_close_matches(env, list(gymnasium.registry), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"agent.env: {env!r} is not an environment that Gymnasium knows here; {hint}({error})"
        ) from None
    except (*FAILURES, ArithmeticError) as error:
        given = f"agent.kwargs {dict(kwargs)}" if kwargs else "no agent.kwargs"
        raise ConfigError(
            f"agent.env: {env!r} cannot be made with {given}: {type(error).__name__}: {one_line(error)}"
        ) from None


def check(env: str, kwargs: Mapping[str, Any] | None = None) -> str:
    """Let Gymnasium check it; what it finds that does no harm here. Raises ConfigError for the rest."""
    from gymnasium.error import Error
    from gymnasium.utils.env_checker import check_env

    world = make(env, kwargs).unwrapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_shapes(env, world)
            check_env(world, skip_render_check=True, skip_close_check=True)
    except (Error, ArithmeticError, *FAILURES) as error:
        why = one_line(error)
        if isinstance(error, AssertionError) and HARMLESS.search(why):
            return f"{env}: {why}"
        raise ConfigError(
            f"agent.env: {env!r} is no environment as Gymnasium has them: {type(error).__name__}: {why}; "
            "expected reset(seed, options) -> observation, info and step(action) -> observation, reward, "
            "terminated, truncated, info"
        ) from None
    finally:
        world.close()
    return ""


def _check_shapes(env: str, world: Any) -> None:
    """Raises ConfigError; what is wrong with the reset is left to Gymnasium's check."""
    seen = world.reset(seed=0)
    stepped = world.step(world.action_space.sample())
    if not isinstance(stepped, tuple) or len(stepped) != 5:
        many = len(stepped) if isinstance(stepped, tuple) else 1
        raise ConfigError(
            f"agent.env: the step of {env!r} returns {many} values, expected 5 (observation, reward, "
            "terminated, truncated, info); it is of an older API: update it"
        )
    shape = world.observation_space.shape
    for call, observation in (("reset", seen[0] if isinstance(seen, tuple) else seen), ("step", stepped[0])):
        if shape is not None and np.shape(observation) != shape:
            raise ConfigError(
                f"agent.env: the {call} of {env!r} returns an observation of shape {np.shape(observation)}, "
                f"its observation space is of {shape}; mend one of them"
            )
    if isinstance(stepped[1], str) or np.size(stepped[1]) != 1:
        raise ConfigError(f"agent.env: the reward of {env!r} is {stepped[1]!r}, expected one number")


def check_finite(what: str, values: np.ndarray, env: str, step: int) -> None:
    """values: of each environment along the first axis. Raises NotFinite."""
    finite = np.isfinite(values)
    if finite.all():
        return
    first = int(np.argwhere(~finite)[0][0])
    odd = np.asarray(values)[first][~finite[first]].ravel()[0] if values.ndim > 1 else values[first]
    raise NotFinite(
        f"{what} of {env} is {odd} at step {step:,} (environment {first + 1} of {len(values)}); "
        "mend the environment"
    )


def spaces_of(params: AgentParams) -> dict[str, Any]:
    """What the net is built from, as JSON: sizes of observation and action, layers, algorithm."""
    from gymnasium.spaces import Box, Discrete

    env = make(params.env, params.kwargs)
    seen, act = env.observation_space, env.action_space
    env.close()
    if isinstance(seen, Box) and len(seen.shape) < 3 and 0 not in seen.shape:
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
    env = make(params.env, params.kwargs)
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


def play(
    env: str, seeds: np.ndarray, act: Act, longest: int, kwargs: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths (episodes,) of one episode for each seed, all played side by side.

    Raises NotFinite, EnvironmentFailed.
    """
    worlds = [make(env, kwargs) for _ in seeds]
    now = [
        called(env, 0, partial(world.reset, seed=int(seed)))[0]
        for world, seed in zip(worlds, seeds, strict=True)
    ]
    returns, lengths, over = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    running = list(range(len(seeds)))
    steps = 0
    while running:
        seen = np.stack([now[i] for i in running])
        check_finite("an observation in an evaluation", seen, env, steps)
        steps += 1
        for i, action in zip(running, act(seen), strict=True):
            now[i], reward, terminated, truncated, _ = called(env, steps, partial(worlds[i].step, action))
            returns[i] += float(reward)
            lengths[i] += 1
            over[i] = terminated or truncated or lengths[i] >= longest
        check_finite("a reward in an evaluation", returns, env, steps)
        running = [i for i in running if not over[i]]
    for world in worlds:
        world.close()
    return returns, lengths


def called(env: str, step: int, call: Callable[[], Any]) -> Any:
    """What an environment's own code returns. Raises EnvironmentFailed."""
    try:
        return call()
    except (ArithmeticError, *FAILURES) as error:
        raise EnvironmentFailed(
            f"{env} failed at step {step:,}: {type(error).__name__}: {one_line(error)}; mend the environment"
        ) from error


def record(
    env: str,
    seed: int,
    act: Act,
    longest: int,
    kwargs: Mapping[str, Any] | None = None,
    draws: bool = True,
) -> tuple[list[tuple[Any, float]], list[np.ndarray]]:
    """Play an episode: its actions with their rewards, and pictures uint8 (H, W, 3) of at most FRAMES steps.

    draws: whether pictures are made. Raises ConfigError where the environment draws none.
    """
    if draws and "rgb_array" not in make(env, kwargs).metadata.get("render_modes", ()):
        raise ConfigError(f"{env} draws no pictures (rgb_array is none of its render modes)")
    world = make(env, kwargs, render_mode="rgb_array") if draws else make(env, kwargs)
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


def at_random(env: str, seed: int, kwargs: Mapping[str, Any] | None = None) -> Act:
    space = make(env, kwargs).action_space
    space.seed(seed)
    return lambda observations: np.stack([space.sample() for _ in observations])
