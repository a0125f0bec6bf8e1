"""What artifacts say of themselves, and that nothing they say can hurt."""

import json

import pytest

from helpers.artifacts import edited, rounded
from qsweep.formats.provenance import read_card, read_provenance, stated_options

CARD = """---
license: apache-2.0
base_model:
- HuggingFaceTB/SmolLM2-135M-Instruct
- other/model
quantized_by: somebody
---
# A model
"""


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    return rounded(tiny_model("llama"), tmp_path_factory.mktemp("made") / "m")


def test_a_checkpoint_with_a_card(made, tmp_path):
    (made / "README.md").write_text(CARD)
    found = read_provenance(made)
    assert (found.method, found.producer) == ("gptq", "qsweep:rtn")
    assert found.options == {"bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    assert found.base_models[0] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found.details()["quantized_by"] == "somebody" and found.license == "apache-2.0"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": False},
         {"bits": 4, "group_size": 128, "desc_act": True, "sym": False}),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True},
         {"bits": 4, "group_size": 64, "sym": False}),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"type": "int8", "bits": 8}),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {"type": "fp8", "bits": 8}),
        ({"quant_method": "mxfp4"}, {"type": "mxfp4", "bits": 4}),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3,
          "group_size": 64}}}, {"bits": 3, "group_size": 64}),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
          "g": {"weights": {"num_bits": 4, "type": "int", "symmetric": True,
                            "strategy": "group", "group_size": 32}}}},
         {"bits": 4, "group_size": 32, "sym": True}),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {
          "g": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
         {"type": "nvfp4", "bits": 4, "group_size": 16}),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
          "g": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}},
         {"type": "fp8", "bits": 8}),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
         {"type": "NVFP4", "group_size": 16}),
        ({"quant_method": "gptq", "bits": [4], "group_size": {"a": 1}}, {}),
    ],
)  # fmt: skip
def test_what_settings_state(settings, options):
    assert stated_options(settings) == options


@pytest.mark.parametrize(
    ("settings", "producer"),
    [
        ({"meta": {"quantizer": ["gptqmodel:7.6.0"]}}, "gptqmodel:7.6.0"),
        ({"autoround_version": "0.9.1", "provider": "auto-round"}, "auto-round 0.9.1"),
        ({"producer": {"name": "modelopt", "version": "0.40"}}, "modelopt 0.40"),
        ({"meta": "no mapping"}, None),
        (
            {"meta": {"quantizer": ["x\n\x1b[31m<script>" + "y" * 500]}},
            "x [31m<script>" + "y" * 105,
        ),
    ],
)
def test_who_wrote_it(made, tmp_path, settings, producer):
    import shutil

    own = tmp_path / "own"
    shutil.copytree(made, own)
    edited(own, "config.json", lambda c: c | {"quantization_config": {
        **{k: v for k, v in c["quantization_config"].items() if k != "meta"}, **settings}})  # fmt: skip
    found = read_provenance(own).producer
    assert found == producer or (found or "").startswith(producer or "-")
    assert found is None or (found.isprintable() and len(found) <= 120)


@pytest.mark.parametrize(
    "text",
    [
        "no front matter",
        "---\n[unclosed\n---\n",
        "---\n!!python/object/apply:os.system ['touch /tmp/pwned']\n---\n",
        "---\njust a text\n---\n",
        "---\nbase_model: " + "[" * 5000 + "\n---\n",
        "---\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]"
                            for n in range(30)) + "\nquantized_by: *a29\n---\n",
    ],
)  # fmt: skip
def test_a_card_can_do_no_harm(made, tmp_path, text):
    card = tmp_path / "README.md"
    card.write_text(text)
    assert not read_card(card).get("base_model")
    (made / "README.md").write_text(text)
    found = read_provenance(made)
    assert found.quantized_by is None and found.base_models == ()
    (made / "README.md").unlink()


def test_a_gguf_tells_its_type_and_maker(tmp_path):
    import gguf

    file = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_quantized_by("somebody\nelse")
    writer.add_file_type(15)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Llama")
    writer.add_base_model_repo_url(0, "https://huggingface.co/meta-llama/Llama-3.2-1B")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_provenance(file)
    assert found.options == {"type": "Q4_K_M", "bits": 4} and found.method == "gguf"
    assert found.quantized_by == "somebody else"
    assert found.base_models == ("meta-llama/Llama-3.2-1B",)
    assert json.dumps(found.details())
