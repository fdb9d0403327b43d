"""The acting net in plain torch: what is evaluated during training is what is saved and served."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from overnight.errors import DataError
from tasks.rl.env import Act
from tasks.shared.predictors import load_model


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

    @torch.inference_mode()
    def act(observations: np.ndarray) -> np.ndarray:
        given = np.asarray(observations)
        if given.shape[1:] != tuple(spaces["shape"]):
            raise DataError(f"the policy takes observations of {('N', *spaces['shape'])}, not {given.shape}")
        states = spaces.get("states")
        flat = (
            np.eye(states, dtype=np.float32)[given.astype(int)]
            if states
            else given.reshape(len(given), -1).astype(np.float32)
        )
        out: np.ndarray = net(torch.from_numpy(flat)).numpy()
        return (
            out.argmax(1)
            if "actions" in spaces
            else out.clip(spaces["low"], spaces["high"]).astype(np.float32)
        )

    return act


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


def predictor(folder: Path) -> Act:
    spaces, weights = load_model(folder)
    net = build(spaces)
    net.load_state_dict(weights)
    return acting(net.eval(), spaces)
