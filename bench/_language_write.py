"""A language model from scratch beside nanoGPT's published line for a CPU; bench/language.py prints it."""

import shutil
import time
from typing import Any

from bench._rows import bar, folder
from flows.write import Write
from overnight import RecordingRun, paths
from tasks.llm.corpus import load_corpus
from tasks.llm.write import train_writer

LOSS_BAR, CPU_BAR = 1.88, 300.0  # nats a character of nanoGPT after as many tokens; CPU-s of the whole step


def write_rows() -> dict[str, Any]:
    """Of configs/shakespeare.yaml."""
    config = Write.load(paths.configs() / "shakespeare.yaml")
    place = folder()
    corpus = load_corpus.body(RecordingRun(place / "corpus"), config.corpus, config.data)
    run = RecordingRun(place / "writer")
    began = time.process_time()
    train_writer.body(run, config.writer, corpus)
    cpu_s = time.process_time() - began
    shutil.rmtree(place)
    found = {"cpu_s": cpu_s, "val": min(run.curve("val/loss")), "bits": run.last("val/bits_per_byte")}
    names = ("loss", "bits_per_byte", "loss_unigram", "loss_bigram", "loss_5-gram")
    found |= {f"test/{name}": run.last(f"test/{name}") for name in names}
    met = [
        bar("write: val nats a character", f"{found['val']:.3f}", f"<= {LOSS_BAR}", found["val"] <= LOSS_BAR),
        bar("write: CPU-s of the step", f"{cpu_s:.0f}", f"<= {CPU_BAR:.0f}", cpu_s <= CPU_BAR),
        bar(
            "write: test nats",
            f"{found['test/loss']:.3f}",
            f"< {found['test/loss_5-gram']:.3f} of 5-gram counts",
            found["test/loss"] < found["test/loss_5-gram"],
        ),
    ]
    return {"write": found, "met": met}
