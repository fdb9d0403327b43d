"""A tuned model is merged and written, and the file answers in llama.cpp as the model does here."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from overnight import RecordingRun
from overnight.data.content import Chats
from overnight.errors import DataError, OvernightError
from tasks.llm import chat_tokens, gguf_export, merging
from tasks.llm.chats import ChatParams
from tasks.llm.merge import MergeParams, merge_llm
from tasks.llm.modelfile import CHAT, modelfile, pieces
from tasks.llm.tune import TuneParams, tune_llm
from tests.support import tiny_llama
from tests.support.tiny_llama import facts


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with tiny_llama.entry(tmp_path_factory.mktemp("weights"), layers=2) as found:
        yield found


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """(model, chats)"""
    run = RecordingRun(tmp_path_factory.mktemp("tuned"))
    chats = chat_tokens.formatted(run, ChatParams(), Chats({"train": facts(4), "val": facts(3)}), base)
    params = TuneParams(base=base, method="lora", epochs=2, batch=2, lr=1e-2, prompts=0)
    return tune_llm.body(run, params, chats), chats


def test_what_is_written_answers_as_the_model_does(tuned, tmp_path):
    run = RecordingRun(tmp_path)
    merged = merge_llm.body(run, MergeParams(chats=2), *tuned)
    names = {path.name for path in merged.path.rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokenizer.json", "tiny-f16.gguf", "tiny-q8_0.gguf", "Modelfile"} <= names
    assert run.last("merged/loss") == pytest.approx(run.last("adapter/loss"), rel=1e-4)
    assert run.last("drift/f16") <= 0.01
    assert run.last("drift/q8_0") <= 0.3
    assert "FROM ./tiny-q8_0.gguf" in (merged.path / "Modelfile").read_text()
    before = load_file(tuned[0].path / "weights.safetensors")
    assert any(float(weight.abs().sum()) > 0 for name, weight in before.items() if "lora_B" in name)


def test_a_base_in_bfloat16_stays_so_and_the_check_is_in_float32(tmp_path):
    with tiny_llama.entry(tmp_path / "bf16") as base:
        folder = base.locate()
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        net.save_pretrained(folder)
        run = RecordingRun(tmp_path)
        chats = chat_tokens.formatted(run, ChatParams(), Chats({"train": facts(2)}), base)
        params = TuneParams(base=base, method="lora", epochs=1, batch=2, lr=1e-3, prompts=0)
        merged = merge_llm.body(run, MergeParams(formats=("f16",)), tune_llm.body(run, params, chats), chats)
    weights = load_file(merged.path / "transformers" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert run.last("drift/f16") <= 0.01


def test_a_file_that_computes_otherwise_is_not_handed_on(tuned, tmp_path, base):
    model = merging.Tuned.read(tuned[0].path).model(torch.device("cpu"), "fp32", bits="").merge_and_unload()
    data = merging._chosen(tuned[1], 2)
    asked = merging._questions(model, data)
    weights = {name: weight * 3 if "mlp" in name else weight for name, weight in model.named_parameters()}
    gguf_export.write(tmp_path / "odd.gguf", "f16", base.locate(), weights, None, [2])
    form = merging.Tuned.read(tuned[0].path).form()
    with pytest.raises(OvernightError, match=r"odd\.gguf: llama\.cpp gives next tokens other log prob"):
        merging._compare(RecordingRun(tmp_path), "f16", tmp_path / "odd.gguf", form, asked)


def test_an_unknown_type_is_refused():
    with pytest.raises(
        DataError, match=r"type 'gemma3' is not written as GGUF; known are llama.*formats: \[\]"
    ):
        gguf_export.check({"model_type": "gemma3"})
    with pytest.raises(DataError, match="positions of the type 'yarn'"):
        gguf_export.check({"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}})


def test_without_formats_only_transformers_is_written(tuned, tmp_path):
    merged = merge_llm.body(RecordingRun(tmp_path), MergeParams(formats=()), *tuned)
    assert {path.parent.name for path in merged.path.rglob("*.safetensors")} == {"transformers"}
    assert not list(merged.path.rglob("*.gguf"))


def formatted(base, template):
    form = chat_tokens.format_of(base)
    form.tokenizer.chat_template = template
    return form


def test_the_modelfile_renders_what_the_template_does(base):
    form = formatted(base, tiny_llama.TEMPLATE)
    assert pieces(form).text(CHAT) == form.text(CHAT, asks=True)
    made = modelfile(form, "tiny.gguf")
    assert '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}' in made
    assert 'PARAMETER stop "<|im_end|>"' in made
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    made = modelfile(formatted(base, default + tiny_llama.TEMPLATE), "tiny.gguf")
    assert 'SYSTEM """Be kind."""' in made
    begin = modelfile(formatted(base, "<|endoftext|>" + tiny_llama.TEMPLATE), "tiny.gguf")
    assert 'TEMPLATE """<|endoftext|>{{ range .Messages }}' in begin
    odd = tiny_llama.TEMPLATE.replace("in messages", "in messages[-1:]")
    assert "TEMPLATE" not in modelfile(formatted(base, odd), "tiny.gguf")
