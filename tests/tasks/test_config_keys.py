"""Keys of earlier versions are refused with the name of today; saved models that have them load."""

from pathlib import Path

import pytest

from flows.agent import Agent
from flows.detect import Detect
from flows.graph import Graph
from flows.vision import Vision
from overnight.config import Experiment, Params
from overnight.errors import ConfigError
from tasks.detection.yolo import YoloParams
from tasks.graphs.params import GnnParams
from tasks.shared.predictors import current_keys, saved_params
from tasks.vision.params import CnnParams

SECTIONS = {  # flow and its data, and of each section what it has beside the key
    "cnn": (Vision, "data: digits", "cnn: {%s}"),
    "yolo": (Detect, "data: bccd", "yolo: {%s}"),
    "compose": (Detect, "data: digits", "compose: {%s}"),
    "graph": (Graph, "data: karate", "graph: {%s}"),
    "link": (Graph, "", "link: {node: n, by: [a], label: l, features: {x: y}, %s}"),
    "gnn": (Graph, "data: karate", "gnn: {%s}"),
    "agent.ppo": (Agent, "", "agent: {ppo: {%s}}"),
    "agent.dqn": (Agent, "", "agent: {dqn: {%s}}"),
}
RENAMED = [
    ("cnn", "width", "channels"),
    ("cnn", "decay", "schedule"),
    ("cnn", "average", "ema"),
    ("cnn", "optimiser", "optimizer"),
    ("yolo", "width", "width_multiplier"),
    ("yolo", "rate", "lr"),
    ("yolo", "decay", "weight_decay"),
    ("yolo", "flip", "flip_probability"),
    ("yolo", "flip_vertical", "flip_vertical_probability"),
    ("yolo", "scale", "scale_jitter"),
    ("yolo", "colour", "color_jitter"),
    ("compose", "scale", "object_scale"),
    ("graph", "scale", "normalize"),
    ("link", "scale", "normalize"),
    ("gnn", "smoothing", "label_smoothing"),
    ("agent.ppo", "decay", "anneal"),
    ("agent.dqn", "decay", "anneal"),
    ("agent.ppo", "clip", "clip_range"),
]


def problems(flow: type[Experiment], text: str, path: Path) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        flow.load(path)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(("section", "old", "new"), RENAMED)
def test_an_old_key_is_refused_with_the_new_one(tmp_path: Path, section: str, old: str, new: str) -> None:
    flow, data, line = SECTIONS[section]
    text = f"# one\n{data}\n{line % f'{old}: 0'}\n"
    assert f"old.yaml:3: {section}.{old}: is now called {new}" in problems(flow, text, tmp_path / "old.yaml")


def test_every_renamed_key_is_tested() -> None:
    def below(model: type[Params]) -> set[tuple[str, str]]:
        found = set(model.RENAMED.items()) if model.__module__.startswith("tasks.") else set()
        return found.union(*(below(part) for part in model.__subclasses__()))

    assert below(Experiment.__mro__[1]) == {(old, new) for _, old, new in RENAMED}


@pytest.mark.parametrize("key", ["batch", "micro_batch", "grow"])
def test_a_graph_has_no_batches(tmp_path: Path, key: str) -> None:
    text = f"data: karate\ngnn:\n  {key}: 7\n"
    assert f"a.yaml:3: gnn.{key}: unknown key: every step sees the whole graph" in problems(
        Graph, text, tmp_path / "a.yaml"
    )
    assert key not in GnnParams().result_params()


def test_only_a_similar_key_is_suggested_and_every_override_is_named(tmp_path: Path) -> None:
    for key in ("rate", "colour"):
        assert "did you mean" not in problems(
            Vision, f"data: digits\ncnn: {{{key}: 1}}\n", tmp_path / "a.yaml"
        )
    (tmp_path / "b.yaml").write_text("data: digits\ncnn: {blocks: 2}\n")
    with pytest.raises(
        ConfigError, match=r"^override 'cnn\.stem=2', override 'cnn\.arch=speedrun': cnn: blocks"
    ):
        Vision.load(tmp_path / "b.yaml", ["cnn.stem=2", "cnn.arch=speedrun"])


def test_values_of_a_model_saved_before_have_todays_names() -> None:
    assert saved_params(CnnParams, {"width": 8, "decay": "linear", "average": 0.5}) == CnnParams(
        channels=8, schedule="linear", ema=0.5
    )
    assert saved_params(GnnParams, {"batch": 128, "grow": False, "smoothing": 0.1}).label_smoothing == 0.1
    assert current_keys(YoloParams, {"width": 0.5, "classes": ["a"]}) == {
        "width_multiplier": 0.5,
        "classes": ["a"],
    }
    assert saved_params(CnnParams, CnnParams(channels=8).model_dump(mode="json")) == CnnParams(channels=8)


@pytest.mark.parametrize(
    ("flow", "text", "problem"),
    [
        (Agent, "agent: {algorithm: ppo, dqn: {lr: 1}}", "agent: dqn: has no effect with algorithm ppo"),
        (Agent, "agent: {algorithm: dqn, ppo: {epochs: 2}}", "agent: ppo: has no effect with algorithm dqn"),
        (Vision, "data: digits\ncnn: {optimizer: adamw, momentum: 0.8}", "cnn: momentum is a value of sgd"),
        (
            Graph,
            "etl: {config: ETL}\nlink: {node: n, by: [a], label: l, features: {x: y}, blank: degree}",
            "link.blank: unknown key: link makes",
        ),
    ],
)
def test_a_value_without_effect_is_refused(
    tmp_path: Path, flow: type[Experiment], text: str, problem: str
) -> None:
    etl = Path(__file__).parents[2] / "configs" / "etl.yaml"
    assert problem in problems(flow, text.replace("ETL", str(etl)), tmp_path / "a.yaml")
