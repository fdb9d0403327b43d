"""A tuning learns, goes on bit-equal after a kill, keeps its base out of checkpoints, and answers."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from overnight import RecordingRun, predictor
from overnight.data.content import Chats
from overnight.data.pretrained import Pretrained
from overnight.errors import BadInput, DataError
from overnight.training.acceleration import Precision
from overnight.training.batches import seeded, split_by_sample
from tasks.llm import base as bases
from tasks.llm import chat_tokens
from tasks.llm.chats import ChatParams
from tasks.llm.generate import generate
from tasks.llm.tune import TuneParams, tune_llm, tune_recipe
from tasks.llm.tuned import Tuned
from tasks.llm.tuning import Gather, batches, by_chat, loss
from tests.support import tiny_llama
from tests.support.tiny_llama import facts

CPU = torch.device("cpu")
WAYS = ({"method": "full"}, {"method": "lora"}, {}, {"bits": "int8"})
NAMES = ("full", "lora", "nf4", "int8")


class Killed(Exception):
    pass


class KilledRun(RecordingRun):
    """Ends at a step, as a killed process does: between two events."""

    step = 0

    def __post_init__(self):
        super().__post_init__()
        self.folder.mkdir()

    def metrics(self, values, step=0):
        if "train/loss" in values and step >= self.step > 0:
            raise Killed
        super().metrics(values, step)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with tiny_llama.entry(tmp_path_factory.mktemp("weights")) as found:
        yield found


@pytest.fixture(scope="module")
def chats(base, tmp_path_factory):
    splits = {"train": facts(12), "val": facts(4), "test": [*facts(2), *facts(1)]}
    run = RecordingRun(tmp_path_factory.mktemp("chats"))
    return chat_tokens.formatted(run, ChatParams(context=128), Chats(splits), base)


def params(base, **values):
    values = {"epochs": 1, "batch": 4, "lr": 1e-2, "prompts": 1, "answer_tokens": 2, **values}
    return TuneParams(base=base, checkpoint_s=0, **values)


def tensors(model):
    return load_file(model.path / "weights.safetensors")


@pytest.fixture(scope="module", params=WAYS, ids=NAMES)
def tuned(request, tmp_path_factory, base, chats):
    run = RecordingRun(tmp_path_factory.mktemp("tuned"))
    return run, tune_llm.body(run, params(base, **request.param), chats), request.param


def test_it_learns_and_answers(tuned, chats):
    run, model, _ = tuned
    assert run.last("after/loss") < run.last("before/loss") - 0.1
    assert run.last("test/loss") < run.last("test/base_loss")
    assert 0 <= run.last("ended_share") <= 1
    assert "## 1" in (run.folder / "answers.md").read_text()
    answers = predictor.load(model.path)
    found = answers.predict(pd.DataFrame({"prompt": ["What is the number of city 1?"]}), tokens=2)
    assert list(found.columns) == [column.name for column in answers.interface.outputs]
    assert found["tokens"][0] <= 2
    judged = answers.item_losses(chats)
    assert judged.cluster.tolist() == [0, 1, 0]
    mean = -np.log(1 - judged.loss)
    assert mean.min() < run.last("test/loss") < mean.max()


def test_after_a_kill_it_ends_bit_equal_and_keeps_no_base(tuned, tmp_path, base, chats):
    _, whole, values = tuned
    for step in (2, 0):
        run = KilledRun(tmp_path / f"killed_at_{step}")
        run.step, run.checkpoints = step, tmp_path / "checkpoints"
        if step:
            with pytest.raises(Killed):
                tune_llm.body(run, params(base, **values), chats)
    resumed = tune_llm.body(run, params(base, **values), chats)
    assert "goes on after optimizer step" in run.of("note")[0]["text"]
    ours, theirs = tensors(resumed), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = sum(tensor.nbytes for tensor in ours.values())
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*.pt"))
    assert largest <= 3 * 3 * kept + (64 << 10)


def test_in_16_bits_as_on_a_card_it_trains_and_answers(tmp_path, base, chats):
    """The frozen weights in bfloat16, norms and adapters in float32, under autocast."""
    run = KilledRun(tmp_path / "run")
    model = tune_llm.body(run, params(base, precision="bf16"), chats)
    assert run.last("after/loss") < run.last("before/loss")
    precision = Precision("bf16", CPU)
    for bits in ("nf4", ""):
        net = Tuned.read(model.path).model(CPU, "bf16", bits=bits).eval()
        with precision.cast():
            (answer,) = generate(net, [[3, 4, 5]], [2], 2)
        assert len(answer.ids) <= 2
    kinds = {name: p.dtype for name, p in net.named_parameters()}
    assert {str(kind) for name, kind in kinds.items() if "lora" in name} == {"torch.float32"}
    assert kinds["base_model.model.model.embed_tokens.weight"] == torch.bfloat16


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_gradients_through_few_bits_are_the_same_after_an_evaluation(base, chats, bits):
    model = bases.Base(params(base, bits=bits), "fp32", CPU).build().train()
    data = {name: torch.from_numpy(array) for name, array in chats.arrays().items()}
    batch = Gather(data, "train")(torch.arange(4))

    def gradients():
        model.zero_grad()
        loss(model, batch)[0].backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    before = gradients()
    model.eval()
    with torch.inference_mode():
        loss(model, batch)
    model.train()
    assert sum(float(one.abs().sum()) for one in before) > 0
    assert all(torch.equal(one, other) for one, other in zip(before, gradients(), strict=True))


def test_a_batch_in_parts_has_the_same_sum_and_every_chat_is_seen_once(base, chats):
    model = bases.Base(params(base, method="full"), "fp32", CPU).build().double()
    data = {name: torch.from_numpy(array) for name, array in chats.arrays().items()}
    made = batches(5, data, seeded(0, 0))
    assert sorted(torch.cat(list(made.order)).tolist()) == list(range(12))
    batch = made.at(0)
    whole, count = loss(model, batch)
    for size in (1, 2, 3):
        parts = [loss(model, part) for part in split_by_sample(batch, size)]
        assert sum(float(part) for part, _ in parts) == pytest.approx(float(whole), rel=1e-12)
        assert sum(int(n) for _, n in parts) == int(count)


def test_losses_do_not_depend_on_what_a_chat_is_batched_with(base, chats):
    model = bases.Base(params(base, method="full"), "fp32", CPU).build().double().eval()
    data = {name: torch.from_numpy(array) for name, array in chats.arrays().items()}
    together = by_chat(model, data, "train")
    make = Gather(data, "train")
    alone = [float(loss(model, make(torch.tensor([row])))[0]) for row in range(12)]
    assert together[:, 0].tolist() == pytest.approx(alone, rel=1e-5)
    assert together[:, 1].tolist() == [
        float(part.sum()) for part in data["train_answers"].split(data["train_lengths"].tolist())
    ]


@pytest.mark.parametrize("values", WAYS, ids=NAMES)
def test_the_outline_has_the_tensors_of_the_real_model(base, chats, values):
    given = params(base, precision="fp32", **values)
    with torch.device("meta"):
        outline = tune_recipe(given, chats.spec).build()
    real = bases.Base(given, "fp32", CPU).build()
    trained = [
        {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        for model in (outline, real)
    ]
    assert trained[0] == trained[1]
    frozen = [sum(p.nbytes for p in model.parameters() if not p.requires_grad) for model in (outline, real)]
    # a real layer of few bits has its scales, and tables of 272 values, outside of its parameters
    assert frozen[1] <= frozen[0] <= 1.1 * frozen[1] + 7 * 4 * 272


def test_another_base_under_the_same_name_is_refused(tmp_path, base, chats):
    model = tune_llm.body(KilledRun(tmp_path / "run"), params(base, epochs=1), chats)
    meta = (model.path / "meta.json").read_text()
    digest = Tuned.read(model.path).digest
    (model.path / "meta.json").write_text(meta.replace(digest, "0" * 64))
    with pytest.raises(DataError, match=r"tuned on tiny with the digest 0000.*tune again"):
        predictor.load(model.path)


def test_chats_of_another_base_are_refused(tmp_path, base, chats):
    with tiny_llama.entry(tmp_path, seed=1, layers=2) as other, pytest.raises(DataError, match="flow again"):
        tune_llm.body(KilledRun(tmp_path / "run"), params(other), chats)


def test_values_without_effect_and_odd_prompts_are_refused(tmp_path, base, chats):
    with pytest.raises(ValueError, match="rank has no effect with method full"):
        params(base, method="full", rank=4)
    with pytest.raises(ValueError, match="bits has no effect with method lora"):
        params(base, method="lora", bits="int8")
    model = predictor.load(tune_llm.body(RecordingRun(tmp_path), params(base, epochs=1), chats).path)
    for prompt in ("", 3, None):
        with pytest.raises(BadInput, match="prompt 0: expected text"):
            model.predict(pd.DataFrame({"prompt": [prompt]}, dtype=object))
    with pytest.raises(BadInput, match="tokens is 0"):
        model.predict(pd.DataFrame({"prompt": ["a"]}), tokens=0)
    with pytest.raises(BadInput, match=r"prompt 1: .* more than the 1,024 that the model can read"):
        model.predict(pd.DataFrame({"prompt": ["a", "word " * 1200]}), tokens=4)


def test_targets_that_the_model_does_not_have_are_refused(tmp_path, base, chats):
    with pytest.raises(BadInput, match=r"'nope_proj'.* not found in the base model"):
        tune_llm.body(RecordingRun(tmp_path), params(base, targets="nope_proj"), chats)
    with pytest.raises(BadInput, match=r"^targets 'nope' not found"):
        tune_llm.body(RecordingRun(tmp_path), params(base, targets="q_proj,nope"), chats)


def test_a_context_beyond_the_model_s_own_is_refused(tmp_path, base):
    with pytest.raises(DataError, match=r"chats\.context is 1,025, .* reads 1,024 tokens"):
        chat_tokens.formatted(
            RecordingRun(tmp_path), ChatParams(context=1025), Chats({"train": facts(2)}), base
        )


@pytest.mark.parametrize(
    ("config", "kept", "why"),
    [
        ({"num_hidden_layers": 2}, None, "the files lack 9 weights .*'llama'.* such as model.layers.1"),
        ({"model_type": "bert"}, None, "the files lack .* weights .*'bert'"),
        ({}, 5000, "the model cannot be loaded: .*incomplete"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path, config, kept, why):
    folder = tiny_llama.make(tmp_path / "tiny")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=why):
        bases.load(folder, torch.float32, CPU)


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\xff" * 200])
def test_a_damaged_gguf_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.gguf").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.gguf: cannot be read as a language model"):
        bases.most_tokens(Pretrained(name="broken", form="gguf"))
