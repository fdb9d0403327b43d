"""The acting net in plain torch: what is evaluated during training is what is saved and served."""

from typing import Any

import numpy as np
import torch
from torch import nn

from overnight.errors import DataError
from tasks.rl.env import Act


def build(spaces: dict[str, Any]) -> nn.Sequential:
    """The acting net: tanh layers for PPO, ReLU layers for DQN."""
    inside = spaces.get("states") or int(np.prod(spaces["shape"], dtype=int))
    outside = spaces.get("actions") or len(spaces["low"])
    layers: list[nn.Module] = []
    for before, units in zip([inside, *spaces["hidden"]], spaces["hidden"], strict=False):
        layers += [nn.Linear(before, units), nn.Tanh() if spaces["algorithm"] == "ppo" else nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inside, *spaces["hidden"]][-1], outside))


def acting(net: nn.Module, spaces: dict[str, Any]) -> Act:
    """Observations (N, ...) to the actions (N,) or (N, A) that the policy finds best."""
    return lambda observations: best(spaces, outputs(net, spaces, observations))


@torch.inference_mode()
def outputs(net: nn.Module, spaces: dict[str, Any], observations: np.ndarray) -> np.ndarray:
    """What the net puts out for observations (N, ...): a number for each action, or the action itself."""
    given = np.asarray(observations)
    if given.shape[1:] != tuple(spaces["shape"]):
        raise DataError(f"the policy takes observations of {('N', *spaces['shape'])}, not {given.shape}")
    states = spaces.get("states")
    flat = (
        np.eye(states, dtype=np.float32)[given.astype(int)]
        if states
        else given.reshape(len(given), -1).astype(np.float32)
    )
    found: np.ndarray = net(torch.from_numpy(flat)).numpy()
    return found


def best(spaces: dict[str, Any], out: np.ndarray) -> np.ndarray:
    """The actions (N,) or (N, A) by what the net put out."""
    if "actions" in spaces:
        return np.asarray(out.argmax(1))
    return np.asarray(out.clip(spaces["low"], spaces["high"]).astype(np.float32))


def policy_of(model: Any, spaces: dict[str, Any]) -> nn.Sequential:
    """A copy of what acts in an SB3 model."""
    policy = model.policy
    theirs = (
        [*policy.mlp_extractor.policy_net, policy.action_net]
        if spaces["algorithm"] == "ppo"
        else list(policy.q_net.q_net)
    )
    net = build(spaces)
    net.load_state_dict(nn.Sequential(*theirs).state_dict())
    return net.eval()
