"""What the evaluation needs at most, measured in processes of their own."""

import json
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from qsweep.evaluate import build_reference, measure, open_reference
    from qsweep.evaluate.footprint import ResidentMemory
    from qsweep.text.windows import Preset, Windows

    folder, preset = Path(sys.argv[1]), sys.argv[2]
    config = AutoConfig.for_model(
        "llama", vocab_size=128_256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )
    torch.manual_seed(0)
    source = folder / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(source)

    def load():
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    windows = Windows(
        torch.randint(128_256, (1, 2048)), torch.full((1,), 1), torch.full((1,), 2048),
        Preset("gptq", 2048), "none",
    )
    model = load()
    memory = ResidentMemory()
    cache = folder / "cache"
    cache.mkdir()
    build_reference(model, windows, cache)
    building = memory.peak_bytes()
    reference = open_reference(cache, source, "cpu", torch.float32)
    memory = ResidentMemory()
    found = measure(model, windows, reference)
    measuring = memory.peak_bytes()
    print(json.dumps({
        "building": building, "measuring": measuring, "kld": found.metrics["kld"],
        "tokens": found.facts["tokens_scored"],
    }))
    """
)


def test_a_vocabulary_of_128k_takes_at_most_a_gigabyte_beyond_the_model(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "gptq"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    logits = found["tokens"] * 128_256 * 4
    assert logits > 1e9  # what a script that keeps a window's logits would need, once
    # without another copy of them, or a softmax of theirs
    assert found["building"] < 1e9
    assert found["measuring"] < 1e9
    assert found["kld"] == 0


@pytest.mark.gpu
def test_a_vocabulary_of_128k_on_a_gpu(tmp_path):
    import torch

    script = SCRIPT.replace("dtype=torch.float32).eval()", "dtype=torch.bfloat16).eval().cuda()")
    script = script.replace('"cpu", torch.float32', '"cuda", torch.bfloat16')
    script = script.replace("ResidentMemory()", "TorchMemory('cuda')")
    script = script.replace("import ResidentMemory", "import TorchMemory")
    assert torch.cuda.is_available()
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "gptq"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["building"] < 1e9 and found["measuring"] < 1e9
    assert found["kld"] == 0
