"""A trained policy: observations to actions, and an episode to look at."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overnight import predictor as contract
from overnight.artifact import Artifact
from overnight.errors import BadInput, ConfigError
from overnight.predictor import ItemLosses
from tasks.rl.env import at_random, episode_seeds, make, play, record
from tasks.rl.policy import acting, best, build, outputs
from tasks.shared.predictors import load_model

if TYPE_CHECKING:
    import pandas as pd

COMMON = 0  # seed of the episodes in which agents are compared, whatever seed they were trained with
FRAME_MS = 40


def predictor(folder: Path) -> "Policy":
    """The policy in that folder."""
    return Policy(folder)


class Policy:
    """Observations to actions, and their probabilities where the algorithm has them (PPO, discrete)."""

    def __init__(self, folder: Path) -> None:
        self.spaces, weights = load_model(folder)
        self.interface = contract.interface(folder)
        self.net = build(self.spaces)
        self.net.load_state_dict(weights)
        self.net.eval()
        self.shape = tuple(self.spaces["shape"])
        self.env: str = self.spaces["env"]
        self.kwargs: dict[str, Any] = self.spaces.get("kwargs", {})
        self.longest: int = self.spaces["longest_episode"]

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The best action for each observation.

        In the column `observation`, or in as many columns of numbers as an observation has. Raises BadInput.
        """
        import pandas as pd

        out = outputs(self.net, self.spaces, self._observations(frame))
        names = [column.name for column in self.interface.outputs]
        actions = best(self.spaces, out)
        if "actions" not in self.spaces:
            return pd.DataFrame(actions.astype(np.float64), columns=names)
        powers = np.exp((out - out.max(1, keepdims=True)).astype(np.float64))
        chances = powers / powers.sum(1, keepdims=True)
        return pd.DataFrame({"action": actions} | {name: chances[:, i] for i, name in enumerate(names[1:])})

    def item_losses(self, *_artifacts: Artifact) -> ItemLosses:
        """(highest - return) / (highest - lowest), cut to [0, 1], of episodes whose seeds all agents share.

        The bounds are `agent.return_bounds`, else the mean return of random actions in the same episodes and
        the environment's reward threshold. Raises ConfigError where neither says what is high.
        """
        seeds = episode_seeds(COMMON, "compare", self.spaces["episodes"])
        low, high = self.spaces["return_bounds"] or self._bounds(seeds)
        returns, _lengths = play(self.env, seeds, acting(self.net, self.spaces), self.longest, self.kwargs)
        loss = np.clip((high - returns) / (high - low), 0, 1)
        return ItemLosses(loss, seeds.astype(str), np.arange(len(seeds)), np.full(len(seeds), "episodes"))

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []

    def play(self, folder: Path, seed: int = 0) -> "tuple[pd.DataFrame, list[str]]":
        """Play an episode: its steps as a table, episode.gif in the folder, and what there is to say."""
        import pandas as pd

        act = acting(self.net, self.spaces)
        try:
            steps, frames = record(self.env, seed, act, self.longest, self.kwargs)
            problem = ""
        except ConfigError as error:  # the renderer
            steps, frames = record(self.env, seed, act, self.longest, self.kwargs, draws=False)
            problem = f"no episode.gif: {error}"
        if frames:
            _save_gif(frames, folder / "episode.gif")
        actions = np.stack([np.asarray(action) for action, _reward in steps]).reshape(len(steps), -1)
        rewards = np.array([reward for _action, reward in steps])
        names = [column.name for column in self.interface.outputs][: actions.shape[1]]
        table = pd.DataFrame(actions, columns=names)
        table.insert(0, "step", np.arange(1, len(steps) + 1))
        said = f"an episode of {len(steps)} steps in {self.env}: return {rewards.sum():g}"
        return table.assign(reward=rewards, total=rewards.cumsum()), [said, *([problem] if problem else [])]

    def _bounds(self, seeds: np.ndarray) -> tuple[float, float]:
        high = make(self.env, self.kwargs).spec.reward_threshold
        if high is None:
            raise ConfigError(
                f"{self.env} declares no reward threshold, so its returns have no scale; set "
                "agent.return_bounds: [lowest, highest]"
            )
        chance = at_random(self.env, COMMON, self.kwargs)
        low = float(play(self.env, seeds, chance, self.longest, self.kwargs)[0].mean())
        return min(low, high - 1e-9), float(high)

    def _observations(self, frame: "pd.DataFrame") -> np.ndarray:
        """(N, *shape), finite. Raises BadInput."""
        size = int(np.prod(self.shape, dtype=int))
        numbered = [f"observation_{i}" for i in range(size)]
        if "observation" in frame:
            rows = [_cell(value) for value in frame["observation"]]
        elif set(numbered) <= set(frame.columns):
            rows = list(frame[numbered].to_numpy())
        elif frame.shape[1] == size:
            rows = list(frame.to_numpy())
        else:
            raise BadInput(
                f"an observation of {self.env} has {size} numbers; give them in a column 'observation' or in "
                f"{size} columns, not in {frame.shape[1]}"
            )
        try:
            found = np.stack(
                [np.asarray(row, np.float64).reshape(self.shape) for row in rows] or [np.empty(self.shape)]
            )
        except (ValueError, TypeError):
            raise BadInput(
                f"an observation of {self.env} is an array of {self.shape} of numbers; a row here is not"
            ) from None
        found = found[: len(rows)]
        self._check(found)
        return found

    def _check(self, found: np.ndarray) -> None:
        """Raises BadInput for values that no observation has."""
        states = self.spaces.get("states")
        if not np.isfinite(found).all():
            row = int(np.argwhere(~np.isfinite(found))[0][0])
            raise BadInput(f"observation {row} has a value that is no finite number")
        if states and ((found < 0) | (found >= states) | (found != np.floor(found))).any():
            raise BadInput(f"observations of {self.env} are whole numbers from 0 to {states - 1}")


def _save_gif(frames: list[np.ndarray], path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0)


def _cell(value: Any) -> Any:
    """Lists come as text out of a CSV file."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadInput(f"{value[:80]!r} is no observation; write [0.1, 0.2, ...]") from None
