"""Texts told apart and translated, beside words alone and a table of words; for bench/language.py.

`python -m bench._language_text 3` tunes the classifier with three seeds, which takes longer.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from bench._rows import bar, folder
from flows.text import Text
from overnight import Artifact, RecordingRun, paths
from tasks.text.classify import train_classifier
from tasks.text.load import load_texts
from tasks.text.pairs import load_pairs
from tasks.text.translate import train_translator

FROZEN = 0.818  # test accuracy of logistic regression over the frozen encoder, measured before
ACCURACY_BAR, SST2_CPU_BAR, TRANSLATE_CPU_BAR = 0.86, 500.0, 600.0


def _trained(body: Callable[[RecordingRun], Artifact], seed: int = 0) -> tuple[RecordingRun, float]:
    """The run of a step, and its CPU-s."""
    place = folder()
    run = RecordingRun(place, seed=seed)
    began = time.process_time()
    body(run)
    cpu_s = time.process_time() - began
    shutil.rmtree(place)
    return run, cpu_s


def sst2_rows(seeds: int = 1) -> dict[str, Any]:
    """Of configs/sst2.yaml, once for each seed."""
    config, place = Text.load(paths.configs() / "sst2.yaml"), folder()
    texts = load_texts.body(RecordingRun(place), config.texts, config.data)
    rows, met = [], []
    for seed in range(seeds):
        run, cpu_s = _trained(lambda run: train_classifier.body(run, config.classifier, texts), seed)
        names = ("accuracy", "accuracy_tfidf", "majority", "loss")
        row = {"seed": seed, "cpu_s": cpu_s} | {name: run.last(f"test/{name}") for name in names}
        rows.append(row)
        accuracy = row["accuracy"]
        beside = f"frozen {FROZEN}, words {row['accuracy_tfidf']:.3f}"
        met += [
            bar(
                f"sst2, seed {seed}: test accuracy",
                f"{accuracy:.4f} ({beside})",
                f">= {ACCURACY_BAR}",
                accuracy >= ACCURACY_BAR,
            ),
            bar(f"sst2, seed {seed}: CPU-s", f"{cpu_s:.0f}", f"<= {SST2_CPU_BAR:.0f}", cpu_s <= SST2_CPU_BAR),
        ]
    shutil.rmtree(place)
    return {"sst2": rows, "met": met}


def translate_rows() -> dict[str, Any]:
    """Of configs/translate.yaml."""
    config, place = Text.load(paths.configs() / "translate.yaml"), folder()
    pairs = load_pairs.body(RecordingRun(place), config.pairs, config.data)
    run, cpu_s = _trained(lambda run: train_translator.body(run, config.translator, pairs))
    shutil.rmtree(place)
    names = ("bleu", "bleu_greedy", "bleu_words", "chrf", "chrf_words", "rouge_l")
    found = {name: run.last(f"test/{name}") for name in names}
    signature = next(e["value"] for e in run.of("param") if e["name"] == "signature.bleu")
    met = [
        bar(
            f"translate: BLEU ({signature})",
            f"{found['bleu']:.1f}",
            f"> {found['bleu_words']:.1f} of a table of words",
            found["bleu"] > found["bleu_words"],
        ),
        bar("translate: CPU-s", f"{cpu_s:.0f}", f"<= {TRANSLATE_CPU_BAR:.0f}", cpu_s <= TRANSLATE_CPU_BAR),
    ]
    return {"translate": found | {"cpu_s": cpu_s, "signature": signature}, "met": met}


if __name__ == "__main__":
    sys.exit(0 if all(sst2_rows(int(sys.argv[1]))["met"]) else 1)
