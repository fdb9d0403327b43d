"""Real bodies on a pretended card: the branches of the loop for CUDA, and the errors that a card ends with."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bench.first_gpu.bodies import BODIES, cnn
from overnight.errors import DoesNotFit, OutOfMemory, RestartProcess
from overnight.run import RecordingRun
from overnight.training.evaluate import predict_all
from overnight.training.loop import train
from overnight.training.recipe import TrainParams
from tests.support import small_trainings
from tests.support.pretended_card import pretended_card

ENGINE = "GET was unable to find an engine to execute this computation"
WSL2 = "6.6.87.2-microsoft-standard-WSL2"


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The same sums every time."""


def on_card(tmp_path, **values):
    return RecordingRun(tmp_path, device="cuda", budget_mib=4000, **values)


def facts(run):
    return {e["name"]: e["value"] for e in run.of("param")}


def notes(run):
    return [e["text"] for e in run.of("note")]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_takes_the_branches_of_a_card(tmp_path, monkeypatch, name):
    run = on_card(tmp_path)
    with pretended_card(monkeypatch):
        model = BODIES[name](run)
    assert model.kind == "model"
    by_name = name.startswith(("cnn", "speedrun"))
    assert facts(run)["data_on"].startswith("card: " if by_name else "host: not tensors by name")
    assert facts(run)["compile.used"].startswith("off: the whole training is")
    others = {"gcn": "fp32", "sage": "fp32", "gat": "fp32", "cnn adamw fp16": "fp16"}
    assert facts(run)["precision"] == others.get(name, "bf16")
    assert run.out_of_memory == 0


def small(run, monkeypatch, epochs=2, compile="auto", **options):  # noqa: A002 - as the config calls it
    """A small training on the pretended card, and that card."""
    params = TrainParams(epochs=epochs, batch=32, compile=compile)
    with pretended_card(monkeypatch, **options) as card:
        fitted = train(small_trainings.recipe(params), run, small_trainings.blobs())
    return fitted, card


def test_two_errors_of_memory_halve_the_micro_batch_and_keep_the_batch(tmp_path, monkeypatch):
    run, plain = on_card(tmp_path), on_card(tmp_path)
    fitted, card = small(run, monkeypatch, largest=8)
    assert (card.refused, run.micro_batch, run.out_of_memory) == (2, 8, 2)
    assert set(run.curve("train/micro_batch")) == {8}
    alone, _ = small(plain, monkeypatch)
    for ours, theirs in zip(fitted.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-2)  # in bf16


def test_after_the_first_step_the_data_leave_the_card_first(tmp_path, monkeypatch):
    run = on_card(tmp_path)
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (pretended)")
    body = {"flip": True, "crop": 1, "epochs": 3}
    with pretended_card(monkeypatch, errors=[None, None, memory, None, None, memory]):
        cnn(run, **body)
    assert [note.partition(",")[0] for note in notes(run)[:2]] == [
        "out of memory: the data leave the card",
        "out of memory with 32 samples at once: goes on with 16 at once",
    ]


@pytest.mark.parametrize(("reserved_mib", "halved"), [(960, True), (300, False)])
def test_a_refused_workspace_is_memory_only_where_the_card_is_short_of_it(
    tmp_path, monkeypatch, reserved_mib, halved
):
    run = on_card(tmp_path)
    monkeypatch.setattr(run, "budget_mib", 1000)
    params = TrainParams(epochs=1, batch=32)
    with pretended_card(monkeypatch, errors=[RuntimeError(ENGINE)]) as card:
        card.reserved_mib = reserved_mib
        if halved:
            train(small_trainings.recipe(params), run, small_trainings.blobs())
            assert (run.micro_batch, run.out_of_memory) == (16, 1)
        else:
            with pytest.raises(RuntimeError, match="unable to find an engine"):
                train(small_trainings.recipe(params), run, small_trainings.blobs())
            assert run.out_of_memory == 0


def test_a_lost_device_ends_the_training_and_halves_nothing(tmp_path, monkeypatch):
    run = on_card(tmp_path)
    lost = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        small(run, monkeypatch, errors=[None, None, lost])
    assert (run.out_of_memory, notes(run)) == (0, [])


@pytest.mark.parametrize("text", ["CUDA driver error: device not ready", "CUDA error: unknown error"])
def test_paging_that_fails_goes_on_in_a_fresh_process_with_less(tmp_path, monkeypatch, text):
    monkeypatch.setattr("platform.release", lambda: WSL2)
    run = on_card(tmp_path)
    run.restarts = True
    run.checkpoints = tmp_path / "checkpoints"
    with pytest.raises(RestartProcess, match=text):
        small(run, monkeypatch, errors=[None, None, RuntimeError(text)])
    again = on_card(tmp_path)
    again.checkpoints = run.checkpoints
    small(again, monkeypatch)
    assert set(again.curve("train/micro_batch")) == {16}
    assert again.last("val/accuracy") > 0.8


def test_paging_that_fails_in_an_evaluation_goes_on_in_slices_of_half(tmp_path, monkeypatch):
    def score(model, data, split):
        logits = predict_all(model, data[f"{split}_x"], torch.device("cuda"), 50)
        return {"accuracy": float((logits.argmax(1) == data[f"{split}_y"]).double().mean())}

    monkeypatch.setattr("platform.release", lambda: WSL2)
    run, again = on_card(tmp_path), on_card(tmp_path)
    run.restarts = True
    run.checkpoints = again.checkpoints = tmp_path / "checkpoints"
    chosen = small_trainings.recipe(TrainParams(epochs=2, batch=32), evaluate=score)
    lost = RuntimeError("CUDA driver error: device not ready")
    options = {"failing": (torch.nn.functional.linear,), "evaluating": True}
    with pretended_card(monkeypatch, errors=[None, lost], **options), pytest.raises(RestartProcess):
        train(chosen, run, small_trainings.blobs())
    with pretended_card(monkeypatch, largest=25, **options) as card:
        train(chosen, again, small_trainings.blobs())
    assert card.refused == 0
    assert again.last("val/accuracy") > 0.8


def test_paging_that_fails_with_one_sample_is_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.release", lambda: WSL2)
    run = on_card(tmp_path)
    errors = [RuntimeError("CUDA driver error: device not ready") for _ in range(20)]
    with pytest.raises(OutOfMemory, match="device not ready"):
        small(run, monkeypatch, errors=errors)
    assert run.micro_batch == 1


def test_one_sample_that_does_not_fit_ends_in_words(tmp_path, monkeypatch):
    with pytest.raises(DoesNotFit, match="one sample at a time does not fit 4000 MiB of the card"):
        small(on_card(tmp_path), monkeypatch, largest=0)


def test_a_refused_page_locked_batch_changes_no_micro_batch_and_is_named(tmp_path, monkeypatch):
    def refused(_tensor, *_):
        raise RuntimeError("CUDA error: out of memory")

    run = on_card(tmp_path)
    with pretended_card(monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
        cnn(run)
    locked = [note for note in notes(run) if "page-locked" in note]
    assert locked == ["batches are not page-locked, which the host refused (CUDA error: out of memory)"]
    assert (run.out_of_memory, run.micro_batch) == (0, 32)


def test_under_wsl2_durations_are_taken_between_two_waits_for_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.release", lambda: WSL2)
    run = on_card(tmp_path)
    _, card = small(run, monkeypatch, epochs=12)
    windows = 12 * 7 // 10
    assert card.synchronized >= windows + 12  # and once an epoch for the throughput
    assert notes(run) == []


def test_a_compiler_that_fails_in_its_own_way_ends_no_training(tmp_path, monkeypatch):
    class TritonError(Exception):
        """Triton's: of Exception alone."""

    def fails(*_arguments, **_options):
        raise TritonError("no PTX assembler")

    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=TritonError))
    monkeypatch.setattr(torch, "compile", lambda _call, backend: fails)
    run = on_card(tmp_path)
    small(run, monkeypatch, compile="on")
    assert notes(run) == ["goes on without compiling: no PTX assembler"]
