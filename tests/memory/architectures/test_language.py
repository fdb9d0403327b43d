"""Fine-tuning of language models, predicted from a config: layers, 4 bits, 8-bit states, bad input."""

import json

import pytest
import torch
from torch import nn

from overnight.cli.main import main
from overnight.errors import BadInput
from overnight.memory.architectures import layers
from overnight.memory.architectures.language import Tuning, language_recipe, predict_language
from overnight.memory.prediction import traced
from overnight.memory.trace import Trace
from overnight.memory.tracer import Tracer

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("transformers", reason="the extra llm is not installed")
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def at(tuning, depth):
    return traced(language_recipe(tuning.model_copy(update={"layers": depth})), tuning.batch, "cuda")


CASES = {
    "full, accumulated": {"accumulate": 2},
    "4 bits, checkpointing": {
        "method": "qlora",
        "checkpointing": True,
        "rank": 4,
        "targets": "q_proj,down_proj",
    },
}
DEPTH = 7


@pytest.mark.parametrize("name", CASES)
def test_a_deep_net_is_foretold_event_by_event(tiny, name):
    tuning = Tuning(model=tiny, batch=2, sequence=16, **CASES[name])
    real, asked = at(tuning, DEPTH), []
    foretold = layers.deep(lambda depth: asked.append(depth) or at(tuning, depth), DEPTH)
    assert asked[-1] < DEPTH
    assert layers._same(foretold, real)
    assert foretold.places == real.places[: len(foretold.events)]


def test_layers_that_are_not_alike_are_all_traced(tiny):
    asked = []

    def net(depth):  # every second layer takes more
        asked.append(depth)
        trace = Trace()
        for layer in range(depth):
            trace.allocate(1000 + layer % 2, "weights", ("build", "empty"))
        return trace

    assert layers.deep(net, 9).sizes == net(9).sizes
    assert asked == [2, 3, 4, 5, 9, 9]


def test_twice_the_same(tiny):
    first, second = (at(Tuning(model=tiny, method="qlora", sequence=16), 2) for _ in range(2))
    assert (first.events, first.sizes) == (second.events, second.sizes)


def test_methods_stand_in_the_order_of_their_memory(tiny):
    shape = {"model": tiny, "batch": 4, "sequence": 64, "layers": 2}
    full, kept, eight, lora, four = (
        predict_language(Tuning(**shape, **more))
        for more in (
            {},
            {"checkpointing": True},
            {"optimizer": "adamw8bit"},
            {"method": "lora"},
            {"method": "qlora"},
        )
    )
    assert kept.parts["activations"] < full.parts["activations"] / 2
    assert eight.parts["optimizer"] < 0.7 * full.parts["optimizer"]
    assert four.parts["weights"] < lora.parts["weights"] < full.parts["weights"] + lora.parts["optimizer"]
    assert lora.parts["optimizer"] < full.parts["optimizer"]


def test_gpt_2_and_encoders_are_adapted_too():
    for model in ("gpt2", "distilbert"):
        lora, four = (
            predict_language(Tuning(model=model, method=method, sequence=16, layers=1))
            for method in ("lora", "qlora")
        )
        assert not lora.unknown
        assert not four.unknown
        assert four.parts["weights"] < lora.parts["weights"]


# ---------------------------------------------------------------------- the real libraries


def test_a_layer_of_4_bits_holds_what_a_real_one_does_and_takes_as_much():
    from bitsandbytes.nn import Linear4bit

    from overnight.memory.architectures.quantised import packed

    real = Linear4bit(256, 512, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    real.weight.data = torch.randn(512, 256, dtype=torch.bfloat16)
    real = real.to("cpu")  # quantised by the way
    state = real.weight.quant_state
    held = [real.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    with torch.device("meta"):
        made = packed(nn.Sequential(nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)))[0]
    ours = sum(p.numel() * p.element_size() for p in made.parameters())
    assert ours == sum(t.numel() * t.element_size() for t in held)
    taken = [_backward_peak(net) for net in (real, made.to_empty(device="cpu"))]
    assert taken[1] == pytest.approx(taken[0], rel=0.02)


def _backward_peak(net):
    x = torch.randn(64, 256, dtype=torch.bfloat16, requires_grad=True)
    out = net(x)
    tracer = Tracer(lambda *_: 0)
    with tracer:
        out.sum().backward()
    return tracer.trace.peak().bytes


def test_an_8_bit_optimizer_holds_what_the_real_one_does():
    from bitsandbytes.optim import AdamW8bit as Real

    from overnight.memory.architectures.quantised import AdamW8bit

    def held(kind):
        weights = [nn.Parameter(torch.randn(100, 100)), nn.Parameter(torch.randn(50))]
        optimizer = kind(weights)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        values = [
            v
            for state in optimizer.state.values()
            for n, v in state.items()
            if isinstance(v, torch.Tensor) and "qmap" not in n
        ]
        return sum(v.numel() * v.element_size() for v in values)

    assert held(AdamW8bit) == held(Real)


# ---------------------------------------------------------------------- the command, bad input


def fit(capsys, *arguments):
    code = main(["fit", "--json", *arguments])
    out = capsys.readouterr()
    return code, json.loads(out.out)["steps"][0] if out.out else out.err


def test_the_command_judges_a_training_and_says_what_would_fit(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | {"num_hidden_layers": 1}))
    shape = ("--model", str(path), "--method", "full", "--sequence", "64", "--batch", "2", "--card")
    code, row = fit(capsys, *shape, "8")
    assert (code, row["verdict"]) == (0, "fits")
    assert sum(row["parts"].values()) == pytest.approx(row["mib"], abs=1)
    assert row["largest_micro_batch"] > 100
    budget = (row["high_mib"] + 1024) / 1024
    code, row = fit(capsys, *shape, str(budget), "--batch", "64")
    assert (code, row["verdict"]) == (3, "does not fit")
    for change, mib in row["changes"].items():  # as options, of the same command
        code, changed = fit(capsys, *shape, str(budget), "--batch", "64", *change.split())
        assert (code, changed["verdict"], round(changed["mib"])) == (0, "fits", mib)
    assert row["changes"]


WRONG = {
    "a model that would have to be fetched": (
        ("--model", "some/model", "--method", "lora"),
        "nothing is downloaded",
    ),
    "more tokens than it has places for": (
        ("--model", "gpt2", "--method", "full", "--sequence", "2000"),
        "1024",
    ),
    "no sequence": (("--model", "gpt2", "--method", "full", "--batch", "0"), "batch"),
    "an unknown precision": (
        ("--model", "gpt2", "--method", "full", "--precision", "int3"),
        "precision",
    ),
    "layers that are not there": (("--model", "gpt2", "--method", "lora", "--targets", "nothing"), "nothing"),
    "a flag of another method": (("--model", "gpt2", "--method", "full", "--quant", "nf4"), "--quant"),
    "neither config nor model": ((), "--model"),
    "both": (("vision", "--model", "gpt2"), "either"),
    "a flag of a model beside a config": (("vision", "--rank", "4"), "--rank"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_named(capsys, name):
    arguments, said = WRONG[name]
    code, text = fit(capsys, *arguments)
    assert code == 2
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_attention_heads": 0}, "model"),
        ({"model_type": "no-such"}, "no-such"),
        ({"hidden_size": "wide"}, "model"),
    ],
)
def test_a_config_with_nonsense_is_named(tmp_path, values, said):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | values))
    with pytest.raises(BadInput, match=said):
        predict_language(Tuning(model=str(path)))


def test_a_file_that_is_no_config_is_named(tmp_path):
    path = tmp_path / "config.json"
    for text in ("{", "[1]", '{"hidden_size": 3}'):
        path.write_text(text)
        with pytest.raises(BadInput, match=r"config\.json"):
            predict_language(Tuning(model=str(path)))


def test_what_reads_values_is_unknown_and_never_fits(tiny):
    """An adapter of peft that is built out of values."""
    import peft
    import transformers

    from overnight.memory import predict

    with torch.device("meta"):
        known = {k: v for k, v in TINY.items() if k != "model_type"}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**known, "num_hidden_layers": 1}))
        model = peft.get_peft_model(model, peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    inputs = {name: torch.zeros(1, 8, dtype=torch.long) for name in ("input_ids", "labels")}
    found = predict(model, inputs)
    assert found.unknown
    assert found.verdict(10**9) == "unknown"
