"""A language model from scratch: what it learns, says before and after, keeps and continues."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flows.write import Write
from overnight import Artifact, DataSpec, RecordingRun, paths
from overnight.data.dataset import Dataset, load_entry
from overnight.errors import BadInput, DataError
from tasks.llm.corpus import CorpusParams, corpus_spec, load_corpus
from tasks.llm.write import WriteParams, train_writer, writer_recipe
from tasks.llm.write_predictor import Writer
from tasks.llm.write_training import batches, text_nats
from tests.support.loaded import by_mlflow
from tests.support.resumed import whole_and_resumed

SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 16, "batch": 8, "samples": 2, "sample_tokens": 12}
WORDS = ("the cat sat on the mat. ", "a dog ran to the sea. ", "the sea is far. ")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def entry(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, **options: object) -> Dataset:
    (folder / "made").mkdir(exist_ok=True)
    (folder / "made" / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("OVERNIGHT_DATA", str(folder))
    return Dataset(name="made", kind="text", reader="text", options={"splits": {"train": "a.txt"}, **options})


def sentences(n: int) -> str:
    return "".join(np.random.default_rng(0).choice(WORDS, n))


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(parents=True, exist_ok=True)
    return RecordingRun(folder, seed=seed)


@pytest.fixture(params=["characters", "bpe"])
def corpus(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    data = entry(tmp_path, monkeypatch, sentences(400))
    return load_corpus.body(run_in(tmp_path / "corpus"), CorpusParams(tokens=request.param), data)


def test_it_learns_says_how_it_will_be_and_continues(corpus: Artifact, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    params = WriteParams(epochs=3, epoch_steps=60, prompt="the ", published={"others": 1.0}, **SMALL)
    model = train_writer.body(run, params, corpus)
    first = run.of("note")[0]["text"]
    assert "180 steps of 8 x 16 tokens: about" in first
    assert "MiB" in first
    assert run.last("test/loss") < min(run.last("test/loss_unigram"), run.curve("val/loss")[0])
    size = corpus.meta()["bytes"]["test"]
    nats = run.last("test/loss") * (corpus.spec.counts["test"] - 1)
    assert run.last("test/bits_per_byte") == pytest.approx(nats / np.log(2) / size)
    assert len(run.curve("train/tokens_per_s")) == 3
    published = [Path(e["path"]).name for e in run.of("publish")]
    assert published == ["epoch-001.txt", "epoch-002.txt", "epoch-003.txt", "curve.png"]
    assert (run.folder / "samples" / "epoch-003.txt").read_text().count("\nthe ") == 2
    loaded = by_mlflow(model, tmp_path / "packed")
    asked = pd.DataFrame({"prompt": ["the cat ", "", "\u65e5 never seen", "the cat " * 30]})
    found = loaded.predict(asked, params={"tokens": 20.0})["continuation"].tolist()
    assert found == loaded.predict(asked, params={"tokens": 20.0})["continuation"].tolist()
    assert found[:1] == loaded.predict(asked[:1], params={"tokens": 20.0})["continuation"].tolist()
    assert found != loaded.predict(asked, params={"tokens": 20.0, "seed": 1.0})["continuation"].tolist()
    greedy = [
        loaded.predict(asked, params={"temperature": 0.0, "seed": s})["continuation"][0] for s in (0.0, 7.0)
    ]
    assert greedy[0] == greedy[1]
    if corpus.meta()["tokens"]["kind"] == "characters":
        assert set("".join(found)) <= set("".join(WORDS))


def test_the_gate_sees_the_same_items_whatever_the_tokens(tmp_path: Path, monkeypatch) -> None:
    data, found = entry(tmp_path, monkeypatch, sentences(600)), []
    kinds = [
        load_corpus.body(run_in(tmp_path / f"c{k}"), CorpusParams(tokens=k), data)
        for k in ("characters", "bpe")
    ]
    for number, corpus in enumerate(kinds):
        params = WriteParams(epochs=1, epoch_steps=40, **SMALL)
        model = train_writer.body(run_in(tmp_path / str(number)), params, corpus)
        found.append(Writer(model.path).item_losses(kinds[0]))
    assert found[0].item.tolist() == found[1].item.tolist()
    assert len(found[0].item) == -(-len((kinds[0].path / "test.txt").read_text()) // 512)
    assert ((found[0].loss > 0) & (found[0].loss < 1)).all()
    assert found[0].cluster.tolist() == list(range(len(found[0].item)))


def test_losses_do_not_depend_on_how_a_batch_is_split(tmp_path: Path) -> None:
    made = writer_recipe(WriteParams(**SMALL), DataSpec(tokens=30))
    model = made.build().double()
    batch = {"tokens": torch.randint(0, 30, (8, 17))}
    whole, count = made.loss(model, batch)
    parts = [made.loss(model, {"tokens": part}) for part in batch["tokens"].split(3)]
    assert sum(part.item() for part, _ in parts) == pytest.approx(whole.item(), abs=1e-9)
    assert int(count) == 8 * 16 == sum(int(n) for _, n in parts)


def test_every_token_is_scored_once(tmp_path: Path) -> None:
    made = writer_recipe(WriteParams(**SMALL), DataSpec(tokens=30))
    model = made.build().eval()
    for length in (2, 16, 17, 18, 33, 40):
        tokens = torch.randint(0, 30, (length,), dtype=torch.int32)
        with torch.inference_mode():
            found = text_nats(model, tokens, 16)
            logits = model(tokens[None, :16].long())[0]
        assert len(found) == length - 1
        first = (
            torch.nn.functional.cross_entropy(
                logits[:15], tokens[1:16].long()[: length - 1], reduction="none"
            )
            if length > 15
            else found
        )
        assert torch.allclose(found[: len(first)], first, atol=1e-5)


def test_an_epoch_sees_each_window_once_and_then_again(tmp_path: Path) -> None:
    data = {"train_tokens": torch.arange(16 * 10 + 4, dtype=torch.int32)}
    params = WriteParams(**{**SMALL, "batch": 2})
    seen = torch.cat([batch["tokens"] for batch in batches(params, data, torch.Generator().manual_seed(0))])
    assert seen.shape == (10, 17)
    assert len(set(seen[:, 0].tolist())) == 10
    assert torch.equal(seen[:, 1:], seen[:, :-1] + 1)
    longer = batches(params.model_copy(update={"epoch_steps": 12}), data, torch.Generator().manual_seed(0))
    again = torch.cat([batch["tokens"] for batch in longer])[:, 0]
    assert sorted(again[:10].tolist()) == sorted(set(again.tolist()))


def test_it_goes_on_where_it_was_stopped(corpus: Artifact, tmp_path: Path) -> None:
    params = WriteParams(epochs=3, epoch_steps=10, checkpoint_s=0, **SMALL)
    whole, resumed, again = whole_and_resumed(train_writer.body, params, corpus, run_in, tmp_path, 2)
    assert resumed.digest == whole.digest
    assert sorted(path.name for path in (again.folder / "samples").iterdir()) == ["epoch-003.txt"]


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("", {}, "the file is empty"),
        ("a", {}, "train holds 1 of the 2 tokens"),
        ("abcdefgh" * 9, {"context": 64, "batch": 1}, "a window of 64 and its next token do not fit in"),
    ],
)
def test_too_little_text_is_refused(tmp_path: Path, monkeypatch, text: str, values: dict, said: str) -> None:
    data = entry(tmp_path, monkeypatch, text)
    with pytest.raises(DataError, match=said):
        train_writer.body(
            run_in(tmp_path / "run"),
            WriteParams(**{**SMALL, **values}),
            load_corpus.body(run_in(tmp_path / "corpus"), CorpusParams(), data),
        )


def test_unknown_characters_are_counted_and_cost(tmp_path: Path, monkeypatch) -> None:
    data = entry(tmp_path, monkeypatch, sentences(100) + "\u03b1\u03b2\u03b3" * 20)
    run = run_in(tmp_path / "run")
    corpus = load_corpus.body(run, CorpusParams(), data)
    assert run.last("data/character_of_test_that_train_lacks_kept") == 60
    assert (corpus.arrays("test_tokens")["test_tokens"] == 0).sum() == 60


def test_bad_questions_are_refused(corpus: Artifact, tmp_path: Path) -> None:
    model = train_writer.body(run_in(tmp_path / "run"), WriteParams(epochs=1, epoch_steps=1, **SMALL), corpus)
    writer, one = Writer(model.path), pd.DataFrame({"prompt": ["a"]})
    for options in (
        {"tokens": 0},
        {"tokens": 1.5},
        {"temperature": -1},
        {"temperature": np.nan},
        {"seed": 0.5},
    ):
        with pytest.raises(BadInput, match=next(iter(options))):
            writer.predict(one, **options)
    for frame, said in (
        (pd.DataFrame({"text": ["a"]}), "'prompt' is missing"),
        (pd.DataFrame({"prompt": [None]}), "row 0"),
    ):
        with pytest.raises(BadInput, match=said):
            writer.predict(frame)


def test_the_config_fits_without_its_data() -> None:
    cfg = Write.load(paths.configs() / "shakespeare.yaml")
    spec = corpus_spec(cfg.corpus, load_entry("tinyshakespeare"))
    assert spec == DataSpec(tokens=66)
    weights = sum(p.numel() for p in writer_recipe(cfg.writer, spec).build().parameters())
    assert 790_000 < weights < 800_000  # nanoGPT's shape for a CPU
