"""Every way of quantizing that transformers knows is read, or refused with its reason."""

import json
import shutil

import pytest

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.container import containers
from qsweep.formats.recognize import UNREADABLE, recognize


def directory(tmp_path, pocket_dir, settings):
    path = tmp_path / "model"
    shutil.copytree(pocket_dir, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return path


def test_every_method_of_transformers_has_an_answer():
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    read = {method for found in containers() for method in found.quant_methods}
    # A GGUF file is told by its name, AutoRound's checkpoints by their packing.
    assert set(AUTO_QUANTIZER_MAPPING) <= read | UNREADABLE.keys() | {"gguf", "auto-round"}


@pytest.mark.parametrize("method", sorted(UNREADABLE))
def test_what_cannot_be_read_is_refused_by_name(tmp_path, pocket_dir, method):
    if any(found.claims({"quant_method": method}) for found in containers()):
        return  # it is read by now
    path = directory(tmp_path, pocket_dir, {"quant_method": method})
    with pytest.raises(
        ConfigError, match=f"a checkpoint in {method} that cannot be read: "
    ) as caught:
        recognize(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_told_with_those_that_are_read(tmp_path, pocket_dir):
    path = directory(tmp_path, pocket_dir, {"quant_method": "nonesuch"})
    with pytest.raises(ConfigError, match="in nonesuch; those that can be read are GGUF.*mxfp4"):
        recognize(path)


def test_a_configuration_without_a_method(tmp_path, pocket_dir):
    path = directory(tmp_path, pocket_dir, {"bits": 4})
    with pytest.raises(ArtifactCorrupt, match="has no quant_method"):
        recognize(path)


def test_a_pickle_is_never_read(tmp_path, pocket_dir):
    path = directory(tmp_path, pocket_dir, {"quant_method": "fp8"})
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pickled weights \(pytorch_model.bin\)"):
        recognize(path).size(path)
