"""A GGUF as a folder of transformers: written once, of another form refused."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from overnight.data.pretrained import Pretrained
from overnight.errors import DataError
from tasks.llm.gguf import as_transformers


@pytest.mark.slow  # 20 CPU-s
def test_the_small_model_is_converted_once(tmp_path, monkeypatch):
    small = Pretrained.model_validate("smollm2_135m")
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    folder = as_transformers(small)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert as_transformers(small) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_an_encoder_is_a_folder_already():
    found = as_transformers(Pretrained.model_validate("minilm_l6"))
    assert (found / "config.json").is_file()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60), np.arange(999).tobytes()])
def test_a_file_that_is_no_gguf(tmp_path, monkeypatch, content):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    (tmp_path / "weights" / "odd").mkdir(parents=True)
    (tmp_path / "weights" / "odd" / "odd.gguf").write_bytes(content)
    (tmp_path / "weights" / "odd.yaml").write_text("form: gguf\n")
    with pytest.raises(DataError, match=r"odd\.gguf: cannot be read"):
        as_transformers(Pretrained.model_validate("odd"))
    assert not list((tmp_path / ".overnight" / "converted").glob("*/config.json"))
