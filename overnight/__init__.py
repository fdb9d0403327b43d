"""One card, one night: an experiment pipeline for a person who owns one GPU."""

from overnight import paths
from overnight.artifact import Artifact, DataSpec
from overnight.config import Experiment, Params, Values, runtime_option
from overnight.data.dataset import Dataset
from overnight.gpu.lease import lease
from overnight.run import RecordingRun, Run
from overnight.step import Pipeline, Step, pipeline, step

__all__ = [
    "Artifact",
    "DataSpec",
    "Dataset",
    "Experiment",
    "Params",
    "Pipeline",
    "RecordingRun",
    "Run",
    "Step",
    "Values",
    "lease",
    "pipeline",
    "runtime_option",
    "step",
]

for _package in ("flows", "tasks"):
    paths.import_from_checkout(_package)
