"""Rules in a file: what stands there is in keys and records, and its name is not."""

import json

import pytest

from helpers.sweeps import run_here
from qsweep.api.composition import compose_trials
from qsweep.base.errors import ConfigError
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.native import NativeGPTQ
from qsweep.quantizers.rules import read_rules
from qsweep.sweep.config import trial_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", '"*.down_proj": 8\n"*.o_proj": {bits: 3, group_size: 64}\n'),
        ("a.yml", '- "*.down_proj=8"\n- "*.o_proj=bits:3,group_size:64"\n'),
        ("a.json", json.dumps({"*.down_proj": 8, "*.o_proj": {"bits": 3, "group_size": 64}})),
        ("a.YAML", 'rules:\n  "*.down_proj": 8\n  "*.o_proj": {bits: 3, group_size: 64}\n'),
        ("bom.yaml", '\ufeff"*.down_proj": 8\n"*.o_proj": {bits: 3, group_size: 64}\n'),
        ("without", '{"*.down_proj": 8, "*.o_proj": {bits: 3, group_size: 64}}'),
    ],
)
def test_a_file_is_what_stands_in_it(here, name, content):
    (here / name).write_text(content, encoding="utf-8")
    expected = read_rules({"*.down_proj": 8, "*.o_proj": {"bits": 3, "group_size": 64}})
    assert read_rules(name) == read_rules(here / name) == expected
    assert NativeGPTQ(rules=name) == NativeGPTQ(rules=expected)


def test_llama_cpps_quantizer_reads_types_there(here):
    (here / "types.yaml").write_text('"*.down_proj": q6_k\nlm_head: 8\n')
    assert GGUF(rules="types.yaml").options()["rules"] == ["*.down_proj=q6_k", "lm_head=q8_0"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.yaml", None, "there is no such file in"),
        ("folder.yaml", "", "is a folder"),
        ("empty.yaml", "# nothing\n", "holds no rules"),
        ("empty.json", "", "holds no rules"),
        ("none.yaml", "rules: {}", "holds no rules"),
        ("number.yaml", "8", "holds int, not a mapping"),
        ("list.yaml", "- {'*.o_proj': 8}", "is no PATTERN=VALUE"),
        ("plain.yaml", "*.down_proj: 8", "is no YAML in line 1 (expected"),
        ("plain.yaml", "*.down_proj: 8", 'patterns stand in quotes, as in "*.down_proj": 8'),
        ("bad.json", "{", "is no JSON"),
        ("twice.yaml", '"*.o_proj": 8\n"*.o_proj": 4', "*.o_proj is said to be 8 and 4"),
        ("twice.json", '{"*.o_proj": 8, "*.o_proj": 4}', "*.o_proj is said to be 8 and 4"),
        ("twice.yml", '["*.o_proj=8", "*.o_proj=keep"]', "is said to be 8 and keep"),
        ("binary.yaml", b"\xff\xfe\x00", "is no text"),
        ("value.yaml", '"*.o_proj": nvpf4', "*.o_proj: no such format 'nvpf4'; did you mean"),
        ("deep.json", "[" * 100_000, "is no JSON"),
        ("code.yaml", "!!python/object:os.system {}", "is no YAML"),
        ("rules.txt", None, "or a file of them (.yaml or .json)"),
    ],
)
def test_a_file_that_cannot_be_is_named_in_one_line(here, name, content, told):
    if name.startswith("folder"):
        (here / name).mkdir()
    elif content is not None:
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        NativeGPTQ(rules=name)
    message = str(caught.value)
    assert message.startswith(f"quant.rules={name}: ")
    assert told in message
    assert "\n" not in message


def test_a_sweep_runs_over_files_and_keeps_what_stands_there(here):
    (here / "a.yaml").write_text('"*.down_proj": 8\n')
    (here / "b.json").write_text('{"*.o_proj": "keep"}')
    trials = [trial_config(t) for t in compose_trials(["quant=gptq", "quant.rules=a.yaml,b.json"])]
    assert [trial.quant.options()["rules"] for trial in trials] == [
        ["*.down_proj=8"],
        ["*.o_proj=keep"],
    ]
    # A trial's own process and its record have no need of the file, nor do they see it change.
    (here / "a.yaml").unlink()
    for kept in (trials[0].resolved, trials[0].written):
        assert kept["quant"]["rules"] == ["*.down_proj=8"]
        assert trial_config(json.loads(json.dumps(kept))).quant == trials[0].quant


def test_the_command_line_names_the_file(here):
    done = run_here(["quant=gptq", "quant.rules=nowhere.yaml", f"outputs_dir={here}"], cwd=here)
    assert done.returncode == 2
    assert done.stderr == f"error: quant.rules=nowhere.yaml: there is no such file in {here}\n"
