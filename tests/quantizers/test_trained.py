"""What calibration is worth on trained weights of a mixture and of a hybrid.

Random weights cannot say that: their text is noise, and no channel matters more than another.
"""

import pytest
import torch

from qsweep.evaluate import build_reference, compare_kld, measure, open_reference
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
from qsweep.quantizers.rtn import RTN
from qsweep.text.corpora import calibration_samples, load_documents
from qsweep.text.corpus import CorpusConfig
from qsweep.text.windows import PRESETS, make_windows

SPLITS = ("calibration", "test")
CONTEXT = 256
GRID = [method(bits, 64) for method in (NativeGPTQ, NativeAWQ) for bits in (3, 4)]


def rounding(quantizer):
    """Round to nearest at the same bits, groups and symmetry."""
    return RTN(quantizer.bits, quantizer.group_size, quantizer.symmetric)


@pytest.fixture(scope="module", params=["mixture_dir", "hybrid_dir"])
def measured(request, tmp_path_factory):
    """By quantizer, what is measured of one model that it quantized."""
    from transformers import AutoTokenizer

    path = request.getfixturevalue(request.param)
    model = SourceModel(read_facts(path, path.name), "cpu")
    tokenizer = AutoTokenizer.from_pretrained(path)
    split = {name: load_documents(CorpusConfig(name, "python", split=name)) for name in SPLITS}
    samples = calibration_samples(split["calibration"], tokenizer, 16, CONTEXT, seed=0)
    preset = PRESETS["paper"].override(context=CONTEXT, max_windows=16)
    windows = make_windows(split["test"], tokenizer, preset, CONTEXT)

    def dense(artifact):
        return load_dense(artifact, path, dtype=torch.float32, device="cpu")

    folder = tmp_path_factory.mktemp("reference")
    build_reference(dense(reference_artifact(model.facts)), windows, folder)
    reference = open_reference(folder, path, "cpu", torch.float32)
    pairs = [(quantizer, tmp_path_factory.mktemp("calibrated")) for quantizer in GRID]
    made = dict(zip(GRID, quantize_grid(model, samples, pairs), strict=True))
    for baseline in map(rounding, GRID):
        made[baseline] = baseline.quantize(model, None, tmp_path_factory.mktemp("rounded"))
    return {
        quantizer: measure(dense(artifact), windows, reference)
        for quantizer, artifact in made.items()
    }


@pytest.mark.parametrize("quantizer", GRID, ids=lambda q: f"{q.method}-{q.bits}")
def test_calibration_beats_rounding_significantly(measured, quantizer):
    # The whole paired interval of what it adds to rounding's divergence is below 0.
    added = compare_kld(measured[quantizer], measured[rounding(quantizer)])
    assert added["kld_added_high"] < 0
