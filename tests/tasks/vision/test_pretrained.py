"""Weights to begin with: of a file, of torch's cache, or none; what does not fit is told."""

import hashlib
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from overnight import DataSpec, RecordingRun
from overnight.errors import DataError
from overnight.night.key import key
from tasks.vision.cnn import CnnParams, train_cnn
from tasks.vision.pretrained import cached, initial, read
from tasks.vision.training import build
from tests.tasks.vision.test_cnn import made

SMALL, LARGE = (3, 12, 12), (3, 64, 64)


def net(shape=SMALL, classes=2, **values):
    torch.manual_seed(len(shape))
    params = CnnParams(**{"arch": "resnet18", "channels": 16, **values})
    return params, build(DataSpec(shape=shape, classes=tuple(map(str, range(classes)))), params).state_dict()


def begun(path: Path, shape=SMALL, classes=2, notes=None, **values):
    params, state = net(shape, classes, init=str(path), **values)
    return initial(params, state, (notes if notes is not None else []).append)


def saved(path: Path, state, wrap=lambda state: state) -> Path:
    torch.save(wrap(state), path)
    return path


@pytest.mark.parametrize("arch", ["resnet20", "resnet18", "speedrun"])
def test_a_model_of_ours_is_begun_with(arch, tmp_path):
    images, values = made(tmp_path), {"arch": arch, "channels": 16, "batch": 10, "lr": 1e-9}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = train_cnn.body(
        RecordingRun(tmp_path / "a"), CnnParams(epochs=2, init="scratch", **values | {"lr": 0.05}), images
    )
    run = RecordingRun(tmp_path / "b", seed=5)
    second = train_cnn.body(
        run, CnnParams(epochs=1, init=str(first.path / "weights.safetensors"), **values), images
    )
    ours, theirs = (read(model.path / "weights.safetensors") for model in (first, second))
    assert all(
        torch.allclose(ours[name], theirs[name], atol=1e-5)
        for name in ours
        if "running" not in name and "batches" not in name
    )
    assert any("begins with the weights of" in e["text"] for e in run.of("note"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
)
def test_state_dicts_as_scripts_write_them(wrap, tmp_path):
    _, state = net()
    found = begun(saved(tmp_path / "a.pt", state, wrap), lr=0.1)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_head_of_other_classes_begins_anew(tmp_path):
    notes = []
    found = begun(saved(tmp_path / "a.pt", net(classes=2)[1]), classes=5, notes=notes)
    assert not [name for name in found if name.startswith("fc.")]
    assert any("2 classes there, 5 here" in note for note in notes)


@pytest.mark.parametrize("shapes", [((3, 12, 12), (1, 12, 12)), ((1, 12, 12), (3, 12, 12))])
def test_grey_and_coloured_filters_give_the_same_answer_on_a_grey_image(shapes, tmp_path):
    (params, theirs), (_, ours) = (net(shape) for shape in shapes)
    found = begun(saved(tmp_path / "a.pt", theirs), shapes[1])
    grey = torch.randint(0, 256, (2, 1, 12, 12), dtype=torch.uint8)
    answers = []
    for shape, state in ((shapes[0], theirs), (shapes[1], ours | found)):
        model = build(DataSpec(shape=shape, classes=("a", "b")), params).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            answers.append(model(grey.expand(-1, shape[0], -1, -1)))
    assert torch.allclose(*answers, atol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    stem = saved(tmp_path / "stem.pt", net(LARGE)[1])
    with pytest.raises(
        DataError,
        match=r"conv1.weight is \(16, 3, 7, 7\), not \(16, 3, 3, 3\).*7x7 stem for images of at least 64 px",
    ):
        begun(stem)
    with pytest.raises(
        DataError, match=r"not those of this net \(resnet20\).*missing: body.*not in the net: conv1"
    ):
        begun(stem, arch="resnet20")
    with pytest.raises(DataError, match=r"of another shape.*Give the same channels"):
        begun(saved(tmp_path / "narrow.pt", net(arch="speedrun", channels=8)[1]), arch="speedrun")
    with pytest.raises(DataError, match=r"there is no file .*none\.pt"):
        begun(tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_that_are_no_weights(name, tmp_path):
    path = tmp_path / name
    for content, why in (
        (b"", "the file is empty"),
        (b"not weights at all", "it is damaged"),
        (b"\x80\x02.", "it is damaged|no state dict"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"init: .*({why})"):
            begun(path)


def test_a_pickled_module_is_not_run(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(DataError, match=r"holds no weights that can be read: .* code of a file is not run"):
        begun(tmp_path / "module.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        begun(saved(tmp_path / "list.pt", [1, 2]))


def test_other_weights_make_another_key(tmp_path):
    path, moved = saved(tmp_path / "a.pt", net()[1]), tmp_path / "b.pt"
    keys = [key(train_cnn, 0, [CnnParams(init=str(path))])]
    path.rename(moved)
    keys.append(key(train_cnn, 0, [CnnParams(init=str(moved))]))
    saved(moved, net(classes=3)[1])
    keys.append(key(train_cnn, 0, [CnnParams(init=str(moved))]))
    assert keys[0] == keys[1] != keys[2]


# ------------------------------------------------------------------------------------------------ published
# ones


def hub(folder: Path, state) -> tuple[str, Path]:
    """A cache as torch keeps it, its file named by its own digest."""
    file = saved(folder / "net.pth", state)
    name = f"net-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    return f"http://127.0.0.1:9/models/{name}", file.rename(folder / name)


def test_what_is_in_the_cache_is_used_and_checked(tmp_path):
    notes, (url, file) = [], hub(tmp_path, net(LARGE)[1])
    assert cached(url, tmp_path, notes.append) == file
    assert not notes
    file.write_bytes(b"cut off")
    assert cached(url, tmp_path, notes.append) is None
    assert "damaged" in notes[0]
    assert not file.exists()


def test_what_cannot_be_fetched_is_a_note(tmp_path):
    notes = []
    with socket.socket() as closed:  # a port without a listener
        closed.bind(("127.0.0.1", 0))
        assert (
            cached(f"http://127.0.0.1:{closed.getsockname()[1]}/net-00000000.pth", tmp_path, notes.append)
            is None
        )
    assert "from scratch" in notes[0]
    assert "could not be fetched" in notes[0]


def test_auto_takes_them_only_where_they_fit(tmp_path):
    notes = []
    for params, state in (net(LARGE, init="auto"), net(SMALL, channels=None, init="auto")):
        assert initial(params, state, notes.append) is None
    assert [("at least 64 px" in note) for note in notes] == [True, True]
    assert initial(*net(SMALL, arch="speedrun", init="auto"), notes.append) is None
    assert len(notes) == 2  # nothing is published for the others, so nothing is missed
