"""What a library saved, taken over with the source's dtypes."""

import torch
from safetensors.torch import load_file, save_file

from qsweep.formats.hf import restore_dtypes


def test_only_what_is_no_part_of_a_quantized_layer_gets_the_sources_dtype(tmp_path):
    source, saved, out = (tmp_path / name for name in ("source", "saved", "out"))
    for folder in (source, saved, out):
        folder.mkdir()
    save_file({"norm.weight": torch.ones(4, dtype=torch.bfloat16)}, source / "model.safetensors")
    parts = {
        "q.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "q.weight_packed": torch.ones(2, 2, dtype=torch.uint8),
        "q.weight_scale": torch.ones(2, 1, dtype=torch.float16),
        "q.weight_global_scale": torch.tensor([2688.123]),
        "q.input_global_scale": torch.tensor([0.1]),
        "q.input_scale": torch.tensor([0.1]),
    }
    plain = {"norm.weight": torch.ones(4), "added.weight": torch.ones(4)}
    save_file(parts | plain, saved / "model.safetensors")
    restore_dtypes(source, saved, out)
    found = load_file(out / "model.safetensors")
    assert found.keys() == (parts | plain).keys()
    for name, part in parts.items():
        assert found[name].dtype == part.dtype, name
        assert torch.equal(found[name].float(), part.float()), name
    assert {found[name].dtype for name in plain} == {torch.bfloat16}
