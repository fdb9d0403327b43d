"""A model is asked in batches as if alone, in any bits, by both engines; and refused before the run."""

import json
import signal

import pytest
import torch
from pydantic import ValidationError

from overnight import RecordingRun
from overnight.cli.main import main
from overnight.data.pretrained import Pretrained, load_entry
from overnight.errors import BadInput, DataError, DoesNotFit, Stopped
from overnight.gpu.card import Card
from overnight.memory import request
from overnight.memory.architectures.inference import Serving, predict_inference
from overnight.memory.architectures.weights import weight_bytes
from tasks.llm import ask_memory, asking
from tasks.llm.ask import CompareParams, ModelParams, ask_model, compare_quants
from tasks.llm.endpoint import QuestionParams
from tasks.llm.gguf import as_transformers
from tests.support import tiny_llama

CPU = torch.device("cpu")
PROMPTS = ("a", "What is the number of city 3?", "Say " + "b" * 40, "c")
QUANTS = ("fp32", "bf16", "fp16", "int8", "nf4")
LLAMA_13B = Pretrained(
    name="large",
    form="transformers",
    config={
        "model_type": "llama",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32000,
    },
)
GB_12 = Card(uuid="GPU-12", name="a card", total_mib=12288, budget_mib=11264)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with tiny_llama.entry(tmp_path_factory.mktemp("weights"), layers=2) as found:
        yield found


def made(folder, seed=0):
    folder.mkdir(exist_ok=True)
    return RecordingRun(folder, seed=seed)


def rows(artifact):
    return [json.loads(line) for line in (artifact.path / "answers.jsonl").read_text().splitlines()]


def asked(**values):
    return QuestionParams(**{"prompts": PROMPTS, "tokens": 6, **values})


MODEL = ModelParams(quant="fp32", context=128)


def test_a_batch_answers_as_each_prompt_alone(tmp_path, tiny):
    run = RecordingRun(tmp_path)
    together = rows(ask_model.body(run, MODEL, asked(parallel=3), tiny))
    assert [row["messages"][-1]["content"] for row in together] == list(PROMPTS)
    for number, (prompt, row) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = made(tmp_path / str(number))
        (one,) = rows(ask_model.body(alone, MODEL, asked(prompts=(prompt,)), tiny))
        assert (one["answer"], one["tokens"], one["ended"]) == (row["answer"], row["tokens"], row["ended"])
        assert one["prompt_tokens"] == row["prompt_tokens"]
        assert 0 < row["first_token_s"] <= row["seconds"]
        assert row["ended"] or row["tokens"] == 6
    assert run.last("prompt_tokens_per_s") > 0
    assert run.last("answer_tokens_per_s") > 0
    assert [event["done"] for event in run.of("progress")] == [3, 4]
    assert {event["path"].rpartition("/")[2] for event in run.of("publish")} == {"latency.png", "answers.md"}


def test_an_answer_counts_its_end_and_nothing_beyond(tmp_path, tiny):
    form = asking.format_of(tiny)
    batches = asking.Batches(RecordingRun(tmp_path), torch.nn.Linear(1, 1), form, asked(), [])
    end = form.ends[0]
    found = batches._answer([1, 2, 3], [65, 66, end, end, end], [0.5, 0.6, 0.7, 0.8, 0.9])
    assert (found.tokens, found.ended, found.prompt_tokens) == (3, True, 3)
    assert (found.first_token_s, found.seconds) == (0.5, 0.7)
    cut = batches._answer([1], [65, 66], [0.5, 0.6])
    assert (cut.tokens, cut.ended, cut.seconds) == (2, False, 0.6)


def test_warm_answers_differ_by_seed_alone(tmp_path, tiny):
    def answers(seed):
        run = made(tmp_path / f"{seed}", seed)
        return [
            row["answer"]
            for row in rows(ask_model.body(run, MODEL, asked(prompts=PROMPTS[:2], temperature=1.0), tiny))
        ]

    first = answers(1)
    assert first == answers(1)
    assert first != answers(2)


def test_a_stop_is_heard_within_a_batch_and_keeps_what_is_answered(tmp_path, tiny):
    run, calls = RecordingRun(tmp_path), []

    def should_stop():
        calls.append(signal.SIGTERM)
        return len(calls) > 12  # a batch of one prompt asks eight times

    run.should_stop = should_stop
    with pytest.raises(Stopped, match="stopped at 1 of 4 prompts"):
        ask_model.body(run, MODEL, asked(), tiny)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quant", QUANTS)
def test_the_formula_knows_the_bytes_of_the_weights(tiny, quant):
    model = asking.loaded(as_transformers(tiny), quant, CPU)
    shape = ask_memory.shape_of(tiny)
    assert asking.held_bytes(model) == pytest.approx(weight_bytes(shape, quant), rel=0.05)


def test_fewer_bits_are_compared_with_the_first(tmp_path, tiny):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 9)
    run = RecordingRun(tmp_path)
    compare_quants.body(run, CompareParams(text=text, tokens=301, window=100), tiny)
    for quant in ("bf16", "int8", "nf4"):
        assert run.last(f"loss_added/{quant}") == pytest.approx(
            run.last(f"loss/{quant}") - run.last("loss/fp32")
        )
        assert run.last(f"weights_mib/{quant}") < run.last("weights_mib/fp32")
        assert abs(run.last(f"loss_added/{quant}")) < 0.2
    table = (tmp_path / "quants.md").read_text()
    assert "| nf4 |" in table
    assert {event["path"].rpartition("/")[2] for event in run.of("publish")} == {"quants.png", "quants.md"}
    whole = RecordingRun(tmp_path)
    compare_quants.body(whole, CompareParams(text=text, tokens=100, quants=("fp32",)), tiny)
    ids = torch.tensor(asking.format_of(tiny).tokenizer(text.read_text())["input_ids"][:100])
    model = asking.loaded(as_transformers(tiny), "fp32", CPU)
    with torch.inference_mode():
        assert whole.last("loss/fp32") == pytest.approx(
            float(model(ids[None], labels=ids[None]).loss), abs=1e-5
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"\xff\xfe", "no text in UTF-8"), (b"", "needs two at least")],
)
def test_a_text_that_cannot_be_used(tmp_path, tiny, content, said):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"text\.txt.*{said}"):
        compare_quants.body(RecordingRun(tmp_path), CompareParams(text=path), tiny)


def test_prompts_beyond_the_context_are_named(tmp_path, tiny):
    with pytest.raises(DataError, match=r"^prompt 3 \(\d+ tokens\): with an answer of 6 tokens"):
        ask_model.body(RecordingRun(tmp_path), ModelParams(quant="fp32", context=64), asked(), tiny)
    with pytest.raises(DataError, match="has 1,024 positions"):
        ask_model.body(RecordingRun(tmp_path), ModelParams(quant="fp32", context=1025), asked(), tiny)


def test_a_model_without_a_template(tmp_path):
    with (
        tiny_llama.entry(tmp_path / "weights", template=None) as found,
        pytest.raises(DataError, match="no chat template"),
    ):
        ask_model.body(RecordingRun(tmp_path), MODEL, asked(), found)


def test_what_has_no_effect_is_refused():
    with pytest.raises(ValidationError, match="quant has no effect"):
        ModelParams(engine="llama_cpp", quant="nf4")
    with pytest.raises(ValidationError, match="names one twice"):
        CompareParams(text="a", quants=("nf4", "nf4"))


def test_llama_cpp_takes_a_gguf_alone(tmp_path, tiny):
    with pytest.raises(DataError, match="takes a gguf"):
        ask_model.body(RecordingRun(tmp_path), ModelParams(engine="llama_cpp"), asked(), tiny)


@pytest.mark.slow
def test_a_real_model_by_both_engines(tmp_path):
    weights = load_entry("smollm2_135m")
    questions = asked(prompts=("What is the capital of France?", "Count to three."), tokens=8, parallel=2)
    runs = {}
    for engine in ("llama_cpp", "transformers"):
        runs[engine] = made(tmp_path / engine)
        found = rows(
            ask_model.body(runs[engine], ModelParams(engine=engine, context=256), questions, weights)
        )
        assert [row["prompt_tokens"] for row in found] == [37, 34]
        assert all(0 < row["tokens"] <= 8 for row in found)
        assert all(row["answer"] for row in found)
        assert runs[engine].last("answer_tokens_per_s") > 0
    assert "Paris" in found[0]["answer"]
    assert runs["llama_cpp"].last("server_peak_mib") > 100
    assert runs["transformers"].last("weights_mib") == pytest.approx(257, abs=2)


# ------------------------------------------------------------------------------------------------ memory


def plan(quant, parallel=1, context=1024):
    arguments = [ModelParams(quant=quant, context=context), asked(parallel=parallel), LLAMA_13B]
    return request.plan_request(ask_model, arguments, GB_12)


def test_a_model_that_does_not_fit_is_refused_before_the_run_with_what_helps(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    assert plan("nf4").mib < GB_12.budget_mib
    with pytest.raises(DoesNotFit, match=r"24\.2 GiB of weights in bf16.*model\.quant=nf4 takes"):
        plan("bf16")
    assert plan("nf4", parallel=4).mib == GB_12.budget_mib  # out of memory makes the batches smaller
    with pytest.raises(DoesNotFit, match=r"model\.context=\d+ takes"):
        plan("nf4", context=4096)


def test_layers_that_would_fit_are_named():
    serving = ask_memory.answering(LLAMA_13B, "nf4", 1024, 1)
    assert "of 40 layers would fit" in serving.advice(6000)
    assert "llama_server.yaml" in serving.advice(6000)
    batch = ask_memory.answering(LLAMA_13B, "nf4", 1024, 4).advice(GB_12.budget_mib)
    assert "as a GGUF" not in batch
    needed = predict_inference(Serving.of(model="llama-2-13b", way="nf4", context=1024, batch=2)).needed_mib
    assert f"ask.parallel=2 takes {needed:,.0f} MiB" in batch


def test_llama_cpp_takes_nothing_of_the_card(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERNIGHT_CARD_DIR", str(tmp_path))
    arguments = [ModelParams(engine="llama_cpp"), asked(), LLAMA_13B]
    assert request.plan_request(ask_model, arguments, GB_12).mib == 0


def test_without_config_and_files_it_is_not_known():
    with pytest.raises(DataError, match="has no `config`"):
        ask_memory.shape_of(Pretrained(name="nowhere", form="transformers"))
    with pytest.raises(BadInput, match="inference is known for"):
        ask_memory.shape_of(Pretrained(name="other", form="transformers", config={"model_type": "mamba"}))


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("ask_7b", 0, "fits"),
        ("ask_13b", 0, "fits"),
        ("ask_13b model.quant=fp16", 3, "model.quant=nf4"),
        ("ask_13b weights=llama_70b", 3, "of 80 layers would fit"),
    ],
)
def test_shipped_configs_are_judged_without_weights(capsys, config, code, said):
    assert main(["fit", *config.split(), "--card", "12", "--json"]) == code
    assert said in capsys.readouterr().out
