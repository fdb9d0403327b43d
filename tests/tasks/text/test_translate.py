"""One text of another, from scratch: what is learnt, searched, scored and kept."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flows.text import Text
from overnight import Artifact, DataSpec, RecordingRun, paths
from overnight.data.dataset import Dataset, load_entry
from overnight.errors import BadInput, ConfigError, DataError
from tasks.shared.tokens import END, PAD, RESERVED, START, Pieces
from tasks.text.alignment import IGNORED, aligned
from tasks.text.pairs import PairParams, load_pairs, pairs_of, pairs_spec
from tasks.text.reading import Ragged
from tasks.text.seq2seq import LENGTH, Seq2Seq, beam_search
from tasks.text.text_scores import corpus_scores, rouge_l, text_losses
from tasks.text.translate import TranslateParams, train_translator, translator_recipe
from tasks.text.translate_predictor import Translator
from tasks.text.translate_training import translated
from tasks.text.word_table import WordTable, first_sentences
from tests.support.loaded import by_mlflow
from tests.support.resumed import whole_and_resumed

NUMBERS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "rot": "red", "blau": "blue"}
SMALL = {"layers": 1, "heads": 2, "width": 32, "vocabulary": 300, "longest": 24, "batch": 16, "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_in(folder: Path, seed: int = 0) -> RecordingRun:
    folder.mkdir(parents=True, exist_ok=True)
    return RecordingRun(folder, seed=seed)


def counted(n: int) -> list[tuple[str, str]]:
    """Words, and the same in another language."""
    rng, words = np.random.default_rng(0), list(NUMBERS)
    rows = [rng.choice(words, rng.integers(1, 4)).tolist() for _ in range(n)]
    return [(" ".join(row), " ".join(NUMBERS[word] for word in row)) for row in rows]


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]]) -> Artifact:
    (folder / "made").mkdir(exist_ok=True)
    (folder / "made" / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    monkeypatch.setenv("OVERNIGHT_DATA", str(folder))
    data = Dataset(name="made", kind="pairs", reader="pairs", options={"splits": {"train": "a.tsv"}})
    return load_pairs.body(run_in(folder / "pairs"), PairParams(val=0.1, test=0.1), data)


def test_it_learns_and_is_used(tmp_path: Path, monkeypatch) -> None:
    pairs = loaded(tmp_path, monkeypatch, counted(700))
    train, test = (set(pairs_of(pairs, split)) for split in ("train", "test"))
    assert not train & test
    run = run_in(tmp_path / "run")
    model = train_translator.body(run, TranslateParams(epochs=6, guided=0.3, **SMALL), pairs)
    assert run.curve("val/loss")[-1] < run.curve("val/loss")[0] / 2
    assert run.last("test/rouge_l") > 50
    assert run.last("test/chrf_words") > 90
    assert any(e["name"] == "signature.bleu" and "version" in e["value"] for e in run.of("param"))
    rows = list(csv.DictReader((run.folder / "worst.csv").open(encoding="utf-8")))
    assert float(rows[0]["chrF"]) <= float(rows[-1]["chrF"])
    packed = by_mlflow(model, tmp_path / "packed")
    frame = pd.DataFrame({"source": ["rot", "eins zwei", "", "\u65e5", "drei " * 99]})
    found = packed.predict(frame)["target"].tolist()
    assert found[0] == packed.predict(frame[:1])["target"][0]
    assert found[2] == ""
    assert len(packed.predict(frame, params={"beams": 1.0})) == 5
    losses = Translator(model.path).item_losses(pairs)
    assert len(losses.loss) == pairs.spec.counts["test"]
    assert ((losses.loss >= 0) & (losses.loss <= 1)).all()
    for options, given, said in (({"beams": 0}, "rot", "beams=0"), ({}, None, "row 0")):
        with pytest.raises(BadInput, match=said):
            Translator(model.path).predict(pd.DataFrame({"source": [given]}), **options)


def test_summaries_stand_beside_the_first_sentences(tmp_path: Path, monkeypatch) -> None:
    rows = [
        (f"The {word} is here. Nothing more {i}.", f"The {word} is here.")
        for i, word in enumerate("abcdefgh" * 5)
    ]
    run = run_in(tmp_path / "run")
    params = TranslateParams(epochs=1, task="summarise", **SMALL)
    train_translator.body(run, params, loaded(tmp_path, monkeypatch, rows))
    assert run.last("test/rouge_l_first") == 100
    assert not run.curve("test/bleu_words")


@pytest.mark.parametrize("guided", [0.0, 0.5])
def test_losses_do_not_depend_on_padding_or_on_how_a_batch_is_split(guided: float) -> None:
    made = translator_recipe(TranslateParams(guided=guided, **SMALL), DataSpec())
    model = made.build().double()
    batch = made.example_batch(6)
    masks = torch.arange(24) < torch.tensor([24, 3, 9, 5, 2, 16])[:, None]
    for name in ("source", "target"):
        batch[name] = torch.where(masks, torch.randint(RESERVED, 300, (6, 24)), PAD)
        batch[f"{name}_mask"] = masks
    if guided:
        batch["aligned"] = torch.where(masks, torch.randint(2, (6, 24)), IGNORED)
    whole, count = made.loss(model, batch)
    parts = [made.loss(model, {name: t[i : i + 1] for name, t in batch.items()}) for i in range(6)]
    assert int(count) == int(masks.sum()) - 6 == sum(int(n) for _, n in parts)
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    other = {
        **batch,
        "source": torch.where(masks, batch["source"], 9),
        "target": torch.where(masks, batch["target"], 9),
    }
    assert made.loss(model, other)[0].item() == pytest.approx(whole.item(), rel=1e-12)
    short = {name: t[1:2, :3] for name, t in batch.items()}
    assert made.loss(model, short)[0].item() == pytest.approx(parts[1][0].item(), rel=1e-9)


def test_the_search_finds_the_best_of_all_texts() -> None:
    torch.manual_seed(0)
    params = TranslateParams(**(SMALL | {"width": 8, "longest": 8}))
    model = Seq2Seq(params, 6).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    source, mask, most = torch.tensor([[4, 5, END]]), torch.ones(1, 3, dtype=torch.bool), 3
    limits = torch.tensor([most])
    every = [text for n in range(most) for text in itertools.product(range(RESERVED, 6), repeat=n)]
    texts = [[*text, END] for text in every] + [
        list(text) for text in itertools.product(range(RESERVED, 6), repeat=most)
    ]

    def score(text: list[int]) -> float:
        with torch.inference_mode():
            logits = model(source, mask, torch.tensor([[START, *text[:-1]]]))[0][0].log_softmax(1)
        return float(logits[torch.arange(len(text)), text].sum()) / ((5 + len(text)) / 6) ** LENGTH

    best = max(texts, key=score)
    found = beam_search(model, source, mask, 60, limits)[0].tolist()
    assert [n for n in found if n != PAD] == [START, *best]
    greedy = beam_search(model, source, mask, 1, limits)[0].tolist()
    assert score([n for n in greedy[1:] if n != PAD]) <= score(best) + 1e-9


def test_texts_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(1)
    pieces = Pieces.learnt(["eins zwei drei"] * 3, 262, RESERVED)
    params = TranslateParams(**SMALL)
    model = Seq2Seq(params, pieces.size).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    sources = ["eins", "eins zwei drei zwei", " ", "drei"]
    together = translated(model, pieces, sources, params, 3)
    assert together == [translated(model, pieces, [one], params, 3)[0] for one in sources]


def test_a_table_of_words_learns_which_is_which() -> None:
    table = WordTable(counted(300))
    assert {word: table.translate(word) for word in NUMBERS} == NUMBERS
    assert table.translate("Rot, blau und eins.") == "Red, blue und one."
    assert table.translate("") == ""


def test_tokens_are_aligned_with_those_they_stand_for(monkeypatch) -> None:
    rng, words = np.random.default_rng(0), np.arange(10, 20)
    rows = [rng.permutation(words)[: rng.integers(2, 6)] for _ in range(200)]
    sources = Ragged.of([([*row, END], [0] * (len(row) + 1)) for row in rows])
    targets = Ragged.of([([START, *(row[::-1] + 50), END], [0] * (len(row) + 2)) for row in rows])
    found = aligned(sources, targets)
    wanted = [n for row in rows for n in (IGNORED, *range(len(row) - 1, -1, -1), len(row))]
    assert np.mean(found.tokens.numpy() == wanted) > 0.99
    monkeypatch.setattr("tasks.text.alignment.LINKS", 100)
    few = aligned(sources, targets).tokens.numpy()
    assert (few[1:4] != IGNORED).all()
    assert (few[200:] == IGNORED).all()
    nothing = Ragged.of([([START], [0])])
    assert aligned(sources, nothing).tokens.tolist() == [IGNORED]


def test_a_guided_head_learns_where_to_look() -> None:
    torch.manual_seed(0)
    made = translator_recipe(TranslateParams(guided=1.0, **SMALL), DataSpec())
    model, batch = made.build(), made.example_batch(4)
    batch["source"], batch["target"] = (torch.randint(RESERVED, 300, (4, 24)) for _ in range(2))
    batch["aligned"] = torch.arange(24).flip(0).repeat(4, 1)
    steps = made.optimizer(model)
    for _ in range(60):
        steps.zero_grad()
        (made.loss(model, batch)[0] / 92).backward()
        steps.step()
    looks = model(batch["source"], batch["source_mask"], batch["target"][:, :-1], look=True)[1]
    assert float((looks.argmax(2) == batch["aligned"][:, 1:]).float().mean()) > 0.9


def test_first_sentences_are_as_many_as_targets_have_words() -> None:
    texts = ["One two three. Four five. Six.", "No end", "A! B? C."]
    assert first_sentences(texts, ["a b c d"] * 3) == ["One two three. Four five.", "No end", "A! B? C."]
    assert first_sentences(texts, ["a"]) == ["One two three.", "No end", "A!"]


def test_rouge_is_the_longest_common_run() -> None:
    assert rouge_l(["the cat sat"], ["The cat sat!"]) == 100
    assert rouge_l(["a b c d"], ["a x c y"]) == pytest.approx(50)
    assert rouge_l(["b a"], ["a b"]) == pytest.approx(50)
    assert rouge_l(["", "a"], ["a", ""]) == 0
    assert rouge_l([], []) == 0


def test_scores_are_of_whole_texts() -> None:
    text = "a man in a red hat walks his dog ."
    scores, signatures = corpus_scores([text], [text])
    assert scores == pytest.approx({"rouge_l": 100, "bleu": 100, "chrf": 100})
    assert signatures.keys() == {"bleu", "chrf"}
    losses = text_losses([text, "", "x"], [text, text, text])
    assert losses[0] == pytest.approx(0)
    assert losses[1] == 1


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch) -> None:
    pairs = loaded(tmp_path, monkeypatch, counted(150))
    params = TranslateParams(epochs=2, checkpoint_s=0, guided=0.3, **SMALL)
    whole, resumed, _ = whole_and_resumed(train_translator.body, params, pairs, run_in, tmp_path)
    assert resumed.digest == whole.digest


def test_sections_are_those_of_the_data(tmp_path: Path) -> None:
    for text, said in (
        ("data: multi30k\nclassifier: {epochs: 1}\n", "classifier: is for data of kind 'text'"),
        ("data: sst2\ntranslator: {epochs: 1}\n", "translator: is for data of kind 'pairs'"),
        ("data: digits\n", "is of kind 'images', expected 'text' with classes, or 'pairs'"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            Text.load(tmp_path / "a.yaml")


def test_too_few_pairs_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="no pair for"):
        loaded(tmp_path, monkeypatch, counted(1))


def test_the_config_fits_without_its_data() -> None:
    cfg = Text.load(paths.configs() / "translate.yaml")
    spec = pairs_spec(cfg.pairs, load_entry("multi30k"))
    assert spec is not None
    size = sum(p.numel() for p in translator_recipe(cfg.translator, spec).build().parameters())
    assert math.isclose(size, 1_443_328)
