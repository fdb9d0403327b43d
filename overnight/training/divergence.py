"""What happens when a loss becomes NaN, infinite or far too large: a report, then a rollback or the end."""

import json
import math
from dataclasses import replace
from typing import Any

import torch

from overnight.errors import Diverged
from overnight.run import Run
from overnight.training.batches import samples
from overnight.training.checkpoint import CheckpointStore
from overnight.training.losses import Divergence
from overnight.training.plan import RollbackToCheckpoint
from overnight.training.state import TrainState


def check_losses(run: Run, state: TrainState[Any], store: CheckpointStore, wait: bool) -> None:
    """Raise RollbackToCheckpoint for a bad pending loss if the recipe allows it, else Diverged.

    wait: for the card; otherwise only losses on the host are checked.
    """
    if not wait and not state.monitor.is_free:
        return
    found = state.monitor.check()
    if found is None:
        return
    store.drop(found.at.step)
    _report(run, state, found)
    rollback = state.recipe.rollback
    if rollback and state.plan.rate == 1.0:
        reason = f"{found}; the learning rate is now times {rollback:g}"
        raise RollbackToCheckpoint(reason, replace(state.plan, rate=rollback))
    raise Diverged(
        f"{found}; see divergence.json. "
        "Try a smaller learning rate, clipping (clip), or precision fp32 or bf16"
    )


def _report(run: Run, state: TrainState[Any], found: Divergence) -> None:
    """Publish divergence.json: where, which samples, the losses before, and the norm of each gradient."""
    indices = list[int]()
    if found.at.epoch == state.epoch:
        indices = samples(state.epoch_batches(state.data), found.at.index)
    parameters = state.weights.trainable.items()
    norms = {name: float(p.grad.norm() / found.divisor) for name, p in parameters if p.grad is not None}
    facts = {
        "reason": str(found),
        **vars(found.at),
        "loss": found.loss,
        "losses_before": list(state.monitor.last),
        "samples": indices,
        "gradient_norms": norms,
        "weights_not_finite": [name for name, p in parameters if not bool(torch.isfinite(p).all())],
        "rate": state.rate,
        "micro_batch": state.plan.micro.size,
        "read_at_step": state.done + 1,
    }
    path = run.folder / "divergence.json"
    path.write_text(json.dumps(_as_json(facts), indent=1), encoding="utf-8")
    run.publish(path)


def _as_json(value: Any) -> Any:
    """NaN and infinities as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
