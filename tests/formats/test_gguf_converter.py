import io
import json
import shutil
import sys
import tarfile

import pytest

pytest.importorskip("llama_cpp")

from qsweep.base.errors import BackendUnavailable, IncompatibleTrial, QsweepError  # noqa: E402
from qsweep.commands import env  # noqa: E402
from qsweep.formats.gguf import converter  # noqa: E402

try:
    INSTALLED = bool(converter.converter_dir())
except BackendUnavailable:
    INSTALLED = False
needs_converter = pytest.mark.skipif(not INSTALLED, reason="llama.cpp's converter is not installed")


def source_package(path, version):
    root = f"llama_cpp_python-{version}"
    files = {
        "pyproject.toml": "",
        "vendor/llama.cpp/convert_hf_to_gguf.py": "pass",
        "vendor/llama.cpp/conversion/__init__.py": 'TEXT_MODEL_MAP: dict = {"AForCausalLM": "a"}',
        "vendor/llama.cpp/gguf-py/gguf/__init__.py": "",
        "vendor/llama.cpp/gguf-py/examples/reader.py": "",
        "vendor/llama.cpp/src/llama.cpp": "int main() {}",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def fresh_prefix(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return tmp_path


def test_installs_what_is_needed_and_nothing_else(fresh_prefix, capsys):
    sdist = source_package(fresh_prefix / "x.tar.gz", converter.package_version())
    for _ in range(2):
        assert env.main(["create", "llama.cpp", "--sdist", str(sdist)]) == 0
    place = converter.converter_dir()
    assert str(place) in capsys.readouterr().out
    assert place.is_relative_to(fresh_prefix)
    found = sorted(str(p.relative_to(place)) for p in place.rglob("*.*") if p.is_file())
    assert found == ["conversion/__init__.py", "convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py"]
    assert converter.architectures() == {"AForCausalLM"}
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_another_versions_package_is_refused(fresh_prefix, capsys):
    sdist = source_package(fresh_prefix / "x.tar.gz", "0.0.1")
    assert env.main(["create", "llama.cpp", "--sdist", str(sdist)]) == 1
    assert "installed is" in capsys.readouterr().err


def test_a_broken_package_is_one_line(fresh_prefix):
    broken = fresh_prefix / "x.tar.gz"
    broken.write_bytes(b"nothing")
    with pytest.raises(QsweepError) as caught:
        converter.install(broken)
    assert "\n" not in str(caught.value)


@needs_converter
def test_the_table_of_architectures():
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "GPTNeoXForCausalLM"} <= (
        converter.architectures()
    )


@needs_converter
@pytest.mark.slow
def test_an_unknown_pre_tokenizer_is_refused_in_one_line(tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    splitters = [digits, {"type": "Whitespace"}, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splitters}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(IncompatibleTrial, match="pre-tokenizer was not recognized") as caught:
        converter.convert(model, tmp_path / "out.gguf", "bf16")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("vocab_size", 100, r"this does not hold: max\(tokenizer.vocab.values\(\)\) < vocab_size"),
        ("num_attention_heads", None, r"for //: .* \(llama.py, line \d+: return \(weights.reshape"),
    ],
)
def test_the_converters_own_reason_is_told(setting, value, reason, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config[setting] = value
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(IncompatibleTrial, match=reason) as caught:
        converter.convert(model, tmp_path / "out.gguf", "bf16")
    assert "\n" not in str(caught.value)
