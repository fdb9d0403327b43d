"""Fifty single changes to a checkout, one at a time: after each, exactly the steps that it decides run again.

Each change is made in a copy of this checkout, `overnight run` runs a small night of four families, and the
change is taken back; what ran before is remembered, so that the next change is compared with the same state.
The expected steps are written down here, by hand.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench._house import House, house
from bench._rows import OUT, bar, machine, write
from tests.test_end_to_end import ENTRY, stripes

NIGHT = """# A small night.
flow: nightly
experiments:
  - {flow: vision, name: made, data: made, cnn: {epochs: 1, batch: 16, channels: 8, blocks: 1}}
  - flow: etl
    name: trips
    data: trips
    tables: {fact: trips, joins: [{table: places, by: {place: name}, take: [height]}]}
    predictor: {target: "CASE WHEN late > 5 THEN 'late' ELSE 'in time' END", numeric: [distance, height]}
  - {flow: graph, name: club, data: karate, gnn: {epochs: 2}}
  - {flow: agent, name: pole, agent: {total_steps: 512, eval_every: 512}}
"""
TRIPS = """kind: table
reader: csv
about: made up
files: [{path: trips.csv}, {path: places.csv}]
options: {tables: {trips: trips.csv, places: places.csv}}
"""
IMAGES, CNN, JOIN, FIT = "made/load_images", "made/train_cnn", "trips/join_tables", "trips/fit_table"
GRAPH, GNN, AGENT = "club/load_graph", "club/train_gnn", "pole/train_agent"
EVERY = (IMAGES, CNN, JOIN, FIT, GRAPH, GNN, AGENT)
PICTURE = "datasets/made/train/lying/3.png"
Act = Callable[[Path], object]


@dataclass(frozen=True)
class Change:
    kind: str
    what: str
    expected: tuple[str, ...]
    act: Act


def replaced(file: str, old: str, new: str) -> Act:
    def act(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (root / file).write_text(text.replace(old, new, 1))

    return act


def appended(file: str, line: str = "CHANGED = 1") -> Act:
    return lambda root: (root / file).write_text(f"{(root / file).read_text()}\n{line}\n")


def added(file: str, text: str = "X = 1\n") -> Act:
    return lambda root: (root / file).write_text(text)


def documented(file: str) -> Act:
    """Another text at the top of the module."""
    return lambda root: (root / file).write_text((root / file).read_text().replace('"""', '"""Changed. ', 1))


def spaced(file: str) -> Act:
    return lambda root: (root / file).write_text((root / file).read_text().replace("\n\n", "\n\n\n"))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def released(name: str) -> Act:
    """Another version of an installed library, as its metadata say it."""

    def act(root: Path) -> None:
        installed = Path(sysconfig.get_paths()["purelib"])
        (found,) = (p for p in installed.glob("*.dist-info") if p.name.lower().startswith(f"{name}-"))
        target = root / f"{name}-999.dist-info"
        shutil.copytree(found, target)
        text = (target / "METADATA").read_text()
        (target / "METADATA").write_text(text.replace(f"\nVersion: {version(name)}", "\nVersion: 999", 1))

    return act


def artifact(label: str) -> Callable[[Path], Path]:
    """The artifact of a remembered step."""
    from overnight.night.results import Result

    def find(root: Path) -> Path:
        files = (root / ".overnight" / "results").glob("*.json")
        every = [Result.model_validate_json(file.read_bytes()) for file in files]
        (newest,) = sorted((one for one in every if one.label == label), key=lambda one: one.at)[:1]
        assert newest.value is not None
        return root / ".overnight" / str(newest.value["path"])

    return find


def of_record(label: str, harm: Callable[[Path], object]) -> Act:
    def act(root: Path) -> None:
        files = (root / ".overnight" / "results").glob("*.json")
        mine = [file for file in files if f'"label": "{label}"' in file.read_text()]
        harm(max(mine, key=lambda file: file.stat().st_mtime))  # other keys have records of earlier changes

    return act


def touched(root: Path) -> None:
    os.utime(root / PICTURE, (1, 1))


def copied(root: Path) -> None:
    shutil.copy2(root / PICTURE, root / "copy.png")
    (root / "copy.png").replace(root / PICTURE)


def of_config(old: str, new: str) -> Act:
    return replaced("configs/night.yaml", old, new)


CHANGES = [
    Change("data", "a bit of a training picture", (IMAGES, CNN), lambda root: pixel(root / PICTURE)),
    Change(
        "data",
        "a picture more",
        (IMAGES, CNN),
        lambda root: shutil.copy(root / PICTURE, root / "datasets/made/train/lying/more.png"),
    ),
    Change("data", "a picture less", (IMAGES, CNN), lambda root: (root / PICTURE).unlink()),
    Change(
        "data",
        "a test picture in another class",
        (IMAGES, CNN),
        lambda root: (root / "datasets/made/test/lying/3.png").rename(
            root / "datasets/made/test/standing/x.png"
        ),
    ),
    Change("data", "a value of a table", (JOIN, FIT), replaced("datasets/trips/trips.csv", "10.5", "10.75")),
    Change(
        "data",
        "a value that the join leaves out",
        (JOIN,),
        replaced("datasets/trips/places.csv", "somebody", "another"),
    ),
    Change("data", "the time of a picture's file", (), touched),
    Change("data", "a picture copied over itself", (), copied),
    Change("data", "a file manager's hidden file", (), added("datasets/made/.DS_Store")),
    Change("data", "the words about a set", (), replaced("datasets/trips.yaml", "made up", "invented")),
    Change("data", "how a set is split", (IMAGES, CNN), appended("datasets/made.yaml", "splits: {val: 0.3}")),
    Change("values", "epochs of the net", (CNN,), of_config("epochs: 1", "epochs: 2")),
    Change("values", "a value deep below", (JOIN, FIT), of_config("take: [height]", "take: [height, who]")),
    Change(
        "values",
        "the size of the pictures",
        (IMAGES, CNN),
        of_config("data: made,", "data: made, images: {size: 16},"),
    ),
    Change("values", "a column of the predictor", (FIT,), of_config("[distance, height]", "[distance]")),
    Change("values", "epochs of the graph's net", (GNN,), of_config("gnn: {epochs: 2}", "gnn: {epochs: 3}")),
    Change("values", "steps of the agent", (AGENT,), of_config("total_steps: 512", "total_steps: 768")),
    Change("values", "the seed", EVERY, of_config("flow: nightly", "flow: nightly\nseed: 1")),
    Change("values", "a default, written down", (), of_config("blocks: 1", "blocks: 1, ema: 0")),
    Change("values", "micro-batch", (), of_config("batch: 16", "batch: 16, micro_batch: 8")),
    Change("values", "alone on the card", (), of_config("batch: 16", "batch: 16, exclusive: true")),
    Change("values", "a comment of the config", (), of_config("small", "little")),
    Change(
        "values",
        "the policy of the card",
        (),
        of_config("flow: nightly", "flow: nightly\ncard: {policy: shrink}"),
    ),
    Change("code", "the task's own file", (CNN,), appended("tasks/vision/cnn.py")),
    Change("code", "a module that it imports when it runs", (CNN,), appended("tasks/vision/training.py")),
    Change("code", "a module that this one imports", (CNN,), appended("tasks/vision/nets/layers.py")),
    Change(
        "code",
        "a number in a function",
        (CNN,),
        replaced("tasks/vision/training.py", "SMALL = 2**18", "SMALL = 2**17"),
    ),
    Change(
        "code",
        "a text that is no message",
        (IMAGES,),
        replaced("tasks/vision/load.py", "data/{split}_images", "data/{split}_pictures"),
    ),
    Change("code", "the loader, to the same result", (IMAGES,), appended("tasks/vision/load.py")),
    Change(
        "code", "what several families share", (CNN, FIT, GNN, AGENT), appended("tasks/shared/figures.py")
    ),
    Change("code", "the training loop", (CNN, GNN), appended("overnight/training/loop.py")),
    Change(
        "code", "the reader of the pictures", (IMAGES,), appended("overnight/data/readers/image_folder.py")
    ),
    Change("code", "the reader of the tables", (JOIN,), appended("overnight/data/readers/csv.py")),
    Change("code", "another reader", (), appended("overnight/data/readers/voc.py")),
    Change("code", "another family", (), appended("tasks/detection/training.py")),
    Change("code", "a new method of the family", (), added("tasks/vision/neighbours.py")),
    Change("code", "the engine below the contract", (), appended("overnight/gpu/lease.py")),
    Change("code", "a flow", (), appended("flows/vision.py")),
    Change("code", "a comment", (), appended("tasks/vision/training.py", "# why")),
    Change("code", "a docstring", (), documented("tasks/vision/training.py")),
    Change("code", "empty lines", (), spaced("tasks/vision/training.py")),
    Change(
        "code",
        "a message of an error",
        (),
        replaced(
            "tasks/vision/training.py", "a classifier needs two classes", "a classifier wants two classes"
        ),
    ),
    # The reader of the graph can read tables too.
    Change("versions", "of Polars", (JOIN, FIT, GRAPH), released("polars")),
    Change("versions", "of Gymnasium", (AGENT,), released("gymnasium")),
    Change("versions", "of a library that no step imports", (), released("mlflow")),
    Change(
        "engine", "another engine of Polars", (JOIN,), of_config("tables: {", "tables: {engine: in-memory, ")
    ),
    Change("upstream", "a removed artifact", (IMAGES,), lambda root: shutil.rmtree(artifact(IMAGES)(root))),
    Change(
        "memory",
        "a model with a flipped bit",
        (CNN,),
        lambda root: flipped(artifact(CNN)(root) / "weights.safetensors"),
    ),
    Change(
        "memory",
        "a truncated record",
        (GNN,),
        of_record(GNN, lambda file: file.write_bytes(file.read_bytes()[:100])),
    ),
    Change(
        "memory",
        "a record under another key",
        (FIT,),
        of_record(FIT, lambda file: file.write_text(file.read_text().replace('"seed": "0"', '"seed": "5"'))),
    ),
]


def pixel(file: Path) -> None:
    import numpy as np
    from PIL import Image

    image = np.asarray(Image.open(file)).copy()
    image[0, 0] ^= 1
    Image.fromarray(image).save(file)


def furnish(home: House) -> None:
    """The data and the config of the night."""
    data = home.root / "datasets"
    (data / "made.yaml").write_text(ENTRY)
    stripes(data / "made", 24)
    (data / "trips.yaml").write_text(TRIPS)
    (data / "trips").mkdir()
    names = ("north", "south", "west")
    trips = [f"{names[i % 3]},{10.5 + i % 7},{(i * 5) % 11}" for i in range(90)]
    (data / "trips" / "trips.csv").write_text("\n".join(["place,distance,late", *trips, ""]))
    places = ["north,3.5,a", "south,4.5,b", "west,1.5,c", "east,2.5,somebody"]
    (data / "trips" / "places.csv").write_text("\n".join(["name,height,who", *places, ""]))
    (home.root / "configs" / "night.yaml").write_text(NIGHT)


def ran(home: House) -> tuple[set[str], str]:
    """The steps that the night ran, and what it printed. Raises SystemExit where one failed."""
    text, code, _ = home.run("run", "night")
    rows = home.rows()
    if code or {row["label"] for row in rows} != set(EVERY):
        raise SystemExit(text)
    return {row["label"] for row in rows if row["state"] != "unchanged"}, text


def snapshot(root: Path) -> dict[Path, bytes]:
    """The files that changes touch, but what the runs make."""
    folders = ("configs", "datasets", "tasks", "flows", "overnight")
    files = [path for name in folders for path in (root / name).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if "__pycache__" not in path.parts}


def restore(root: Path, before: dict[Path, bytes]) -> None:
    now = snapshot(root)
    for path in now.keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if now.get(path) != content:
            path.write_bytes(content)
    for folder in root.glob("*.dist-info"):
        shutil.rmtree(folder)


def main() -> int:
    rows = []
    with house() as home:
        furnish(home)
        before = snapshot(home.root)
        first, _ = ran(home)
        again, text = ran(home)
        assert (first, again) == (set(EVERY), set()), text
        for number, change in enumerate(CHANGES, 1):
            change.act(home.root)
            found, text = ran(home)
            restore(home.root, before)
            good = found == set(change.expected)
            rows.append(
                {
                    "kind": change.kind,
                    "what": change.what,
                    "ran": sorted(found),
                    "expected": sorted(change.expected),
                    "good": good,
                }
            )
            print(
                f"{number:2d} {'ok   ' if good else 'WRONG'} {change.kind}: {change.what}:",
                ", ".join(sorted(found)) or "nothing",
                flush=True,
            )
            if not good:
                print(f"   expected {', '.join(sorted(change.expected)) or 'nothing'}\n{text}", flush=True)
        back, text = ran(home)
    good = sum(row["good"] for row in rows)
    write(
        OUT / "night_mutations.json",
        {"machine": machine(), "changes": rows, "steps that ran at the end": sorted(back)},
    )
    print(f"{machine()}\n| single changes | measured | bar | |\n| --- | --- | --- | --- |")
    met = [
        bar("re-ran exactly the expected steps", good, len(rows), good == len(rows)),
        bar("steps that ran after all was taken back", len(back), 0, not back),
    ]
    return 0 if all(met) else 1
