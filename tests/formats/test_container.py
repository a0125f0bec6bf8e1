"""Containers are found by name, qsweep's own and those of other packages."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import QsweepError
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.container import _MODULES, container
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact, write_frame
from qsweep.formats.recognize import recognize
from qsweep.models.facts import read_facts

# Another package with a container of its own: weights as halves, under other names.
MODULE = """
from pathlib import Path

from qsweep.formats.container import Container
from qsweep.formats.stored import StoredTensor
from qsweep.formats.weights import LazyWeight, open_weights, stored_headers


class Halves(Container):
    name = "halves"
    quant_methods = ("halves",)

    def dense_weights(self, artifact, source, device):
        handles = open_weights(artifact.path)
        return {
            name.removesuffix(".half"): LazyWeight(
                lambda name=name, handle=handle: handle.get_tensor(name).float() * 2
            )
            for name, handle in handles.items()
        }

    def stored(self, path):
        return [
            StoredTensor(name.removesuffix(".half"), info.dtype, info.count, info.bits, True, True)
            for name, info in stored_headers(path).items()
        ]


CONTAINER = Halves()
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed package whose entry points name a container, and something that is none."""
    site = tmp_path / "site"
    info = site / "halves-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "halves_container.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qsweep.containers]\nhalves = halves_container:CONTAINER\nwrong = halves_container:Path\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    container.cache_clear()
    sys.modules.pop("halves_container", None)


@pytest.mark.parametrize("name", _MODULES)
def test_each_row_leads_to_the_container_of_that_name(name):
    assert container(name).name == name


def test_an_unquantized_checkpoint_is_counted_from_its_files(pocket_dir):
    facts = read_facts(pocket_dir, "pocket")
    assert container("hf").size(pocket_dir) == reference_artifact(facts).size
    assert container("hf").size(pocket_dir).linear_weights == sum(
        rows * columns for rows, columns in facts.linears.values()
    )


def test_an_unknown_name_is_told_with_the_nearest(other_package):
    with pytest.raises(QsweepError, match=r"no container 'gtpq'.*gptq"):
        container("gtpq")
    with pytest.raises(QsweepError, match="halves_container:Path.* is no Container"):
        container("wrong")


def test_another_packages_container_is_measured_like_our_own(other_package, pocket_dir, tmp_path):
    out = tmp_path / "artifact"
    out.mkdir()
    tensors = load_file(pocket_dir / "model.safetensors")
    halved = {f"{name}.half": tensor.float() / 2 for name, tensor in tensors.items()}
    save_file(halved, out / "model.safetensors")
    write_frame(pocket_dir, out, {"quant_method": "halves"})
    artifact = Artifact(out, "halves", container("halves").size(out))
    assert isinstance(artifact.size, Size)
    assert artifact.size.bpw == 32
    assert recognize(out).name == "halves"
    assert json.loads((out / "config.json").read_text())["quantization_config"]
    model = load_dense(artifact, pocket_dir, dtype=torch.float32, device="cpu")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name].float()), name
