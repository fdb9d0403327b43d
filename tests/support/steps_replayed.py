"""Steps that are reproducible, that draw from nowhere, and that vary with the seed."""

import os

import numpy as np

from overnight import Artifact, Params, Run, step


class DrawParams(Params):
    """noise: of a draw that no seed decides; rows: of the array."""

    noise: float = 0.0
    rows: int = 8


@step
def draws(run: Run, params: DrawParams) -> Artifact:
    """Draw an array by the seed, and score it."""
    values = np.random.default_rng(run.seed).normal(size=params.rows)
    extra = params.noise * np.frombuffer(os.urandom(8), np.uint8).mean() / 256
    run.metric("test/mean", float(values.mean() + extra))
    return run.save("array", arrays={"values": values + extra})
