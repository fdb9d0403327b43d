"""Classifiers of texts: from scratch and from weights, of one sentence and two."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel

from flows.text import Text
from overnight import Artifact, RecordingRun, paths
from overnight.data.dataset import Dataset, load_entry
from overnight.data.pretrained import Pretrained
from overnight.errors import BadInput, ConfigError, DataError
from tasks.text.classify import ClassifyParams, classifier_recipe, train_classifier
from tasks.text.classify_predictor import TextClassifier
from tasks.text.load import TextParams, load_texts, texts_of, texts_spec
from tests.support.loaded import by_mlflow
from tests.support.resumed import whole_and_resumed
from tests.tasks.text.test_reading import words

GOOD, BAD = ("good", "fine", "lovely"), ("bad", "poor", "awful")
SMALL = {"width": 16, "heads": 2, "layers": 1, "vocabulary": 300, "longest": 24, "lr": 5e-3, "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(parents=True, exist_ok=True)
    return RecordingRun(folder, seed=seed)


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], **options: object) -> Artifact:
    (folder / "made").mkdir(exist_ok=True)
    (folder / "made" / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("OVERNIGHT_DATA", str(folder))
    data = Dataset(
        name="made",
        kind="text",
        reader="text_lines",
        options={"splits": {"train": "a.tsv"}, "separator": "\t", **options},
    )
    return load_texts.body(run_in(folder / "texts"), TextParams(), data)


def reviews(n: int = 240) -> list[str]:
    """Of different lengths; a word says which, the rest is noise."""
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        word = rng.choice(GOOD if i % 2 else BAD)
        rest = rng.choice(["the", "film", "was", "a", "plot"], rng.integers(0, 9)).tolist()
        rest.insert(int(rng.integers(0, len(rest) + 1)), word)
        found.append(f"{['neg', 'pos'][i % 2]}\t{' '.join(rest)} {i}")
    return found


def pairs(n: int = 400) -> list[str]:
    """Alike where the sentences name the same thing: neither alone says so."""
    rng, things = np.random.default_rng(0), ["cat", "dog"]
    rows = [(things[a], things[b], a == b) for a, b in rng.integers(0, 2, (n, 2))]
    return [f"{['no', 'yes'][int(same)]}\tone {a}\tis {b} {i}" for i, (a, b, same) in enumerate(rows)]


def encoder(folder: Path, **values: object) -> Pretrained:
    """A tiny encoder with its tokenizer, as a hub has them."""
    made = folder / "encoder"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(made)
    words().save(str(made / "tokenizer.json"))
    return Pretrained(name="encoder", form="transformers", folder="encoder", **values)


def test_a_classifier_from_scratch_learns_and_is_used(tmp_path: Path, monkeypatch) -> None:
    texts = loaded(tmp_path, monkeypatch, reviews())
    run = run_in(tmp_path / "run")
    model = train_classifier.body(run, ClassifyParams(epochs=3, batch=8, **SMALL), texts)
    assert run.last("test/accuracy") >= 0.95
    assert run.last("test/accuracy_tfidf") >= 0.9
    assert 0.4 <= run.last("test/majority") <= 0.6
    names = {Path(e["path"]).name for e in run.of("publish")}
    assert {"confusion.png", "mistakes.csv"} <= names
    rows = list(csv.DictReader((run.folder / "mistakes.csv").open(encoding="utf-8")))
    assert len(rows) == round((1 - run.last("test/accuracy")) * texts.spec.counts["test"])
    frame = pd.DataFrame({"text": ["a lovely film", "awful", "", "good " * 99, "\u65e5\u672c"]})
    packed = by_mlflow(model, tmp_path / "packed")
    found, alone = packed.predict(frame), packed.predict(frame[:1])
    assert found["class"][:2].tolist() == ["pos", "neg"]
    assert found["probability"][0] == pytest.approx(alone["probability"][0], abs=1e-5)
    losses = TextClassifier(model.path).item_losses(texts)
    assert 1 - losses.loss.mean() == pytest.approx(run.last("test/accuracy"))
    with pytest.raises(BadInput, match="row 0 of the column 'text': expected a text"):
        TextClassifier(model.path).predict(pd.DataFrame({"text": [None]}))
    assert len(TextClassifier(model.path).predict(pd.DataFrame({"text": []}))) == 0


def test_two_sentences_are_read_together(tmp_path: Path, monkeypatch) -> None:
    texts = loaded(tmp_path, monkeypatch, pairs(), second=2)
    assert texts_of(texts, "test")[0][0].startswith("one ")
    run = run_in(tmp_path / "run")
    model = train_classifier.body(run, ClassifyParams(epochs=6, batch=8, **(SMALL | {"layers": 2})), texts)
    assert run.last("test/accuracy") >= 0.9
    frame = pd.DataFrame({"second": ["is dog 1", "is dog 2"], "first": ["one cat", "one dog"]})
    assert TextClassifier(model.path).predict(frame)["class"].tolist() == ["no", "yes"]


def test_pretrained_weights_are_read_trained_and_carried(tmp_path: Path, monkeypatch) -> None:
    lines = [
        f"{'xy'[i % 2]}\t{'ab'[i % 2]}{'cdef'[i % 4] * (1 + i % 5)}{'f' * (i // 20)}" for i in range(160)
    ]
    texts = loaded(tmp_path, monkeypatch, lines)
    weights = encoder(tmp_path)
    params = ClassifyParams(weights=weights, epochs=8, batch=8, longest=24, lr=5e-3, dropout=0.0)
    run = run_in(tmp_path / "run")
    model = train_classifier.body(run, params, texts)
    assert run.last("test/accuracy") >= 0.9
    from safetensors.torch import load_file

    before, after = (
        load_file(file)
        for file in (tmp_path / "encoder/model.safetensors", model.path / "weights.safetensors")
    )
    table, layer = "embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(before[table], after[f"body.model.{table}"])
    assert not torch.equal(before[layer], after[f"body.model.{layer}"])
    (tmp_path / "encoder").rename(tmp_path / "elsewhere")  # the model needs them no more
    assert TextClassifier(model.path).predict(pd.DataFrame({"text": ["ac", "bd"]}))["class"].tolist() == [
        "x",
        "y",
    ]


@pytest.mark.parametrize(
    ("config", "kept", "why"),
    [
        ({"num_hidden_layers": 7}, None, "the files lack .* weights"),
        ({}, 5000, "cannot be loaded: .*incomplete"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, monkeypatch, config, kept, why) -> None:
    texts = loaded(tmp_path, monkeypatch, reviews(40))
    weights = encoder(tmp_path)
    place, file = tmp_path / "encoder" / "config.json", tmp_path / "encoder" / "model.safetensors"
    place.write_text(json.dumps(json.loads(place.read_text()) | config))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=why):
        train_classifier.body(run_in(tmp_path / "run"), ClassifyParams(weights=weights, longest=24), texts)


def test_the_key_follows_the_files_of_the_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path))
    before = ClassifyParams(weights=encoder(tmp_path)).result_params()["weights"]
    tokenizer = tmp_path / "encoder" / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text())))
    assert ClassifyParams(weights=encoder(tmp_path)).result_params()["weights"] == before
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"other")
    named = Pretrained(name="encoder", form="transformers", folder="encoder")
    assert ClassifyParams(weights=named).result_params()["weights"] != before


@pytest.mark.parametrize("pretrained", [False, True])
def test_padding_and_splitting_change_no_loss(tmp_path: Path, monkeypatch, pretrained: bool) -> None:
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path))
    own = SMALL | {"label_smoothing": 0.1}
    params = (
        ClassifyParams(weights=encoder(tmp_path), dropout=0.0, longest=24)
        if pretrained
        else ClassifyParams(**own)
    )
    from overnight import DataSpec

    made = classifier_recipe(params, DataSpec(classes=("a", "b")))
    model = made.build().double().eval()
    batch = made.example_batch(6)
    batch["tokens"] = torch.randint(3, 14, batch["tokens"].shape)
    batch["labels"] = torch.arange(6) % 2
    batch["mask"] = torch.arange(24) < torch.tensor([24, 20, 9, 5, 2, 16])[:, None]
    whole, count = made.loss(model, batch)
    other = {**batch, "tokens": torch.where(batch["mask"], batch["tokens"], 3)}
    shorter = {name: t[2:5, :9] if t.ndim > 1 else t[2:5] for name, t in batch.items()}
    first, rest = ({name: t[part] for name, t in batch.items()} for part in ([0, 1, 5], [2, 3, 4]))
    assert made.loss(model, other)[0].item() == pytest.approx(whole.item(), abs=1e-9)
    assert made.loss(model, rest)[0].item() == pytest.approx(made.loss(model, shorter)[0].item(), abs=1e-9)
    assert sum(made.loss(model, part)[0].item() for part in (first, rest)) == pytest.approx(
        whole.item(), abs=1e-9
    )
    assert int(count) == 6


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch) -> None:
    texts = loaded(tmp_path, monkeypatch, reviews(80))
    params = ClassifyParams(epochs=3, batch=8, checkpoint_s=0, **SMALL)
    whole, resumed, _ = whole_and_resumed(train_classifier.body, params, texts, run_in, tmp_path)
    assert resumed.digest == whole.digest


def test_what_cannot_be_learnt_is_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="two classes to tell apart, there are \\['a'\\]"):
        loaded(tmp_path, monkeypatch, ["a\tx", "a\ty"])
    with pytest.raises(DataError, match="no text for val, test"):
        loaded(tmp_path, monkeypatch, ["a\tx", "b\ty"])
    with pytest.raises(ConfigError, match="second: sentences hold spaces"):
        loaded(tmp_path, monkeypatch, ["a x y"], separator=" ", second=2)
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path))
    weights = encoder(tmp_path)
    with pytest.raises(DataError, match="longest is 600, encoder reads 512 tokens at most"):
        train_classifier.body(
            run_in(tmp_path / "run"),
            ClassifyParams(weights=weights, longest=600),
            loaded(tmp_path, monkeypatch, reviews(40)),
        )
    with pytest.raises(ValueError, match="width: of an encoder from scratch; encoder has its own"):
        ClassifyParams(weights=weights, width=64)


def test_the_config_fits_without_its_data() -> None:
    cfg = Text.load(paths.configs() / "sst2.yaml")
    spec = texts_spec(cfg.texts, load_entry("sst2"))
    assert spec is not None
    recipe = classifier_recipe(cfg.classifier, spec)
    assert 22_000_000 < sum(p.numel() for p in recipe.build().parameters()) < 23_000_000
