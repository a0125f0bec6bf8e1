import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial
from qsweep.formats.gguf.ggml import _library, library_path
from qsweep.formats.gguf.types import BY_BITS, FILE_TYPES, REMOVED_TYPES, TENSOR_TYPES, file_type
from qsweep.models.facts import read_facts
from qsweep.quantizers.gguf import GGUF


def test_tables_agree_with_the_package_gguf():
    constants = pytest.importorskip("gguf.constants")
    for number, (block, size) in constants.GGML_QUANT_SIZES.items():
        known = TENSOR_TYPES[number.value]
        # gguf 0.19 takes the sums of Q8_1's blocks for float32; in ggml they are float16.
        size = 36 if known.name == "Q8_1" else size
        assert (known.name, known.block, known.size) == (number.name, block, size)
    for member in constants.LlamaFileType:
        name = member.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        if name in FILE_TYPES:
            assert FILE_TYPES[name].number == member.value
    # What is made of another mixture has the number of the nearest that llama.cpp has a name for.
    own = [t for t in FILE_TYPES.values() if t.mixture is None]
    assert len({t.number for t in own}) == len(own)


@pytest.mark.skipif(library_path() is None, reason="llama-cpp-python is not installed")
def test_tables_know_every_type_that_ggml_reads():
    # How many there are is in the header alone, which llama-cpp-python copies into a comment.
    source = Path(importlib.util.find_spec("llama_cpp").submodule_search_locations[0])
    text = (source / "llama_cpp.py").read_text(encoding="utf-8")
    count = int(re.search(r"GGML_TYPE_COUNT\s*=\s*(\d+)", text)[1])
    for number in range(count):
        traits = _library().ggml_get_type_traits(number).contents
        if not traits.blck_size:
            assert number in REMOVED_TYPES and number not in TENSOR_TYPES
            continue
        known = TENSOR_TYPES[number]
        found = (traits.type_name.decode().upper(), traits.blck_size, traits.type_size)
        assert (known.name, known.block, known.size, known.quantized) == (
            *found,
            bool(traits.is_quantized),
        )
    assert max(TENSOR_TYPES) == count - 1


@pytest.mark.parametrize(("bits", "name"), BY_BITS.items())
def test_bits_pick_a_type_of_that_width(bits, name):
    assert GGUF(bits=bits).options() == {"bits": bits, "type": name, "imatrix": False}


def test_a_type_decides_and_equal_trials_have_equal_options():
    assert GGUF(bits=8, type="q4_k_m").options() == GGUF(bits=4).options()
    assert GGUF(bits=8, type="IQ2_XS", imatrix=True).options()["bits"] == 2
    assert GGUF(bits=4, type="Q4_K").options()["type"] == "Q4_K_M"


def test_an_importance_matrix_that_a_type_ignores_is_no_option():
    assert not GGUF(bits=8, imatrix=True).uses_calibration
    assert GGUF(bits=8, imatrix=True).options() == GGUF(bits=8).options()
    assert GGUF(bits=4, imatrix=True).uses_calibration


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"type": "Q4_K_N"}, "did you mean .*'Q4_K_M'"),
        ({"type": "IQ2XS"}, "IQ2_XS"),
        ({"bits": 0}, "at least 1"),
        ({"bits": None}, "give bits or quant.type"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(ConfigError, match=said):
        GGUF(**values)


@pytest.mark.parametrize(
    ("quantizer", "said"),
    [
        (GGUF(bits=7), "no type of 7 bits; there are 2, 3, 4, 5, 6, 8"),
        (GGUF(type="IQ2_XS"), "set quant.imatrix=true"),
        (GGUF(type="Q2_K_S"), "set quant.imatrix=true"),
    ],
)
def test_what_cannot_exist_is_refused(quantizer, said, pocket_dir):
    with pytest.raises(IncompatibleTrial, match=said):
        quantizer.check(read_facts(pocket_dir, "pocket"))


def test_an_architecture_that_the_converter_lacks_is_refused(pocket_dir, tmp_path):
    pytest.importorskip("llama_cpp")
    (tmp_path / "config.json").write_text('{"architectures": ["OPTForCausalLM"]}')
    facts = dataclasses.replace(read_facts(pocket_dir, "pocket"), path=tmp_path)
    with pytest.raises(IncompatibleTrial, match=r"OPTForCausalLM|env create llama.cpp"):
        GGUF().check(facts)


def test_a_missing_converter_names_the_command(pocket_dir, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="qsweep env create llama.cpp"):
        GGUF().check(read_facts(pocket_dir, "pocket"))


def test_names_fold_in_any_case():
    assert file_type("iq4_nl") is FILE_TYPES["IQ4_NL"]
