"""A new data set of a known format and an experiment on it: two yaml files beside the bytes, no Python."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from overnight.orchestration.checks import load
from overnight.paths import configs
from overnight.run import RecordingRun

IMAGES = """\
kind: images
reader: image_folder
licence: made up
"""
VISION = """\
flow: vision
data: shapes
images: {size: 16, channels: 1}
cnn: {epochs: 4, batch: 32, channels: 8, blocks: 1, lr: 0.1}
"""
EDGES = """\
kind: graph
reader: edge_list
licence: made up
options:
  edges: {file: links.csv, source: from, target: to}
  targets: {file: people.csv, id: name, label: club}
"""
GRAPH = """\
flow: graph
data: friends
gnn: {epochs: 60, hidden: 16}
"""


@pytest.fixture
def new(checkout):
    """Write the two yaml files of an experiment; its pipeline and values come back."""

    def write(name: str, entry: str, config: str):
        configs().mkdir()
        subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
        (checkout / ".gitignore").write_text("/datasets/*/\n/.overnight/\n")
        (checkout / "datasets" / f"{name}.yaml").write_text(entry, encoding="utf-8")
        (configs() / f"{name}.yaml").write_text(config, encoding="utf-8")
        return load(configs() / f"{name}.yaml")

    return write


def touched(checkout) -> list[str]:
    """What git would take, but for the fixture's own .gitignore."""
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.split()
    return sorted(set(listed) - {".gitignore"})


def draw_bars(folder) -> None:
    """Bright bars that lie or stand, as images of several sizes, modes and formats."""
    generator = np.random.default_rng(0)
    for i in range(240):
        high, wide = generator.integers(14, 30, 2)
        pixels = generator.integers(0, 60, (high, wide)).astype(np.uint8)
        at = int(generator.integers(2, 10))
        name = "liegend" if i % 2 else "立つ"
        pixels[(slice(at, at + 3), slice(None)) if i % 2 else (slice(None), slice(at, at + 3))] = 250
        (folder / name).mkdir(parents=True, exist_ok=True)
        mode, ending = [("L", "png"), ("RGB", "jpg"), ("P", "gif"), ("LA", "webp")][i % 8 // 2]
        Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.{ending}")
    (folder / "liegend" / "broken.png").write_bytes(b"no image")


def test_images(new, checkout, tmp_path) -> None:
    draw_bars(checkout / "datasets" / "shapes")
    pipeline, cfg = new("shapes", IMAGES, VISION)
    from tasks.vision.cnn import train_cnn
    from tasks.vision.load import load_images

    assert (pipeline.name, cfg.name, cfg.data.name) == ("vision", "shapes", "shapes")
    first, second = RecordingRun(tmp_path / "a"), RecordingRun(tmp_path / "b")
    images = load_images.body(first, cfg.images, cfg.data)
    assert images.spec.classes == ("liegend", "立つ")
    assert first.last("data/image_that_does_not_decode_dropped") == 1
    train_cnn.body(second, cfg.cnn, images)
    assert second.last("test/accuracy") >= 0.9
    assert second.last("test/majority") <= 0.6
    assert touched(checkout) == ["configs/shapes.yaml", "datasets/shapes.yaml"]


def test_a_graph(new, checkout, tmp_path) -> None:
    generator, folder = np.random.default_rng(0), checkout / "datasets" / "friends"
    folder.mkdir()
    clubs = {f"人{i}": f"club {i % 3}" for i in range(150)}
    names = list(clubs)
    pairs = [generator.choice(names, 2) for _ in range(6000)]
    linked = [(a, b) for a, b in pairs if clubs[a] == clubs[b] or generator.random() < 0.05]
    (folder / "links.csv").write_text(
        "from,to\n" + "".join(f"{a},{b}\n" for a, b in linked), encoding="utf-8"
    )
    (folder / "people.csv").write_text(
        "name,club\n" + "".join(f"{n},{c}\n" for n, c in clubs.items()), encoding="utf-8"
    )
    pipeline, cfg = new("friends", EDGES, GRAPH)
    from tasks.graphs.load import load_graph
    from tasks.graphs.nodes import train_gnn

    first, second = RecordingRun(tmp_path / "a"), RecordingRun(tmp_path / "b")
    nodes = load_graph.body(first, cfg.graph, cfg.data)
    assert (pipeline.name, nodes.spec.nodes, nodes.spec.classes) == (
        "graph",
        150,
        ("club 0", "club 1", "club 2"),
    )
    assert first.last("data/repeated_edge_dropped") > 0
    train_gnn.body(second, cfg.gnn, nodes)
    assert second.last("test/accuracy") >= 0.8
    assert touched(checkout) == ["configs/friends.yaml", "datasets/friends.yaml"]
