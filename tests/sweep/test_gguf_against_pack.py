"""A GGUF file of another maker scored against a pack: as against the model that the pack is of."""

import shutil

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from helpers.reference_packs import (  # noqa: E402
    SMALL,
    configuration,
    make_pack,
    measure_against,
    text_file,
)
from qsweep.base.progress import silent  # noqa: E402
from qsweep.base.store import Store  # noqa: E402
from qsweep.formats.gguf.native import quantize_file  # noqa: E402
from qsweep.formats.gguf.types import FILE_TYPES  # noqa: E402
from qsweep.sweep.config import trial_config  # noqa: E402
from qsweep.sweep.found import identified  # noqa: E402
from qsweep.sweep.plan import make_plan  # noqa: E402
from qsweep.sweep.recording import finished_record  # noqa: E402
from qsweep.sweep.setting import find_setting  # noqa: E402
from qsweep.sweep.trial import run_trial  # noqa: E402


@pytest.mark.slow
def test_a_foreign_gguf_is_as_far_from_the_pack_as_from_the_model(
    pocket_conversion, pocket_dir, tmp_path
):
    file = tmp_path / "pocket-Q4_K_M.gguf"
    quantize_file(pocket_conversion.path, file, FILE_TYPES["Q4_K_M"], None)
    text, pack = text_file(tmp_path), tmp_path / "pocket.pack"
    here, there = Store(tmp_path / "pocket.store"), Store(tmp_path / "there")
    make_pack(pocket_dir, text, pack, "eval.noise_floor=false", store=here.root)
    # The model is converted already, once for all tests.
    kept = here.path("artifacts", "any").parent / ".conversions"
    shutil.copytree(pocket_conversion.path.parents[1], kept, dirs_exist_ok=True)
    target = "qsweep.quantizers.artifact.ExistingArtifact"
    given = ("corpus=file", f"corpus.path={text}", f"model.path={pocket_dir}")
    trial = trial_config(
        configuration(
            *given, *SMALL, "eval.noise_floor=false", quant={"_target_": target, "path": str(file)}
        )
    )
    trial = identified(trial, here)
    plan = make_plan(trial, find_setting(trial, pocket_dir, here))
    run_trial(plan, here, silent)
    own = finished_record(plan, here)
    found = finished_record(measure_against(pack, file, there), there)
    expected, packed = own.measurements[0].metrics, found.measurements[0].metrics
    assert expected["kld"] > 1e-3
    assert packed["kld"] == pytest.approx(expected["kld"], abs=1e-6)
    assert packed["ppl"] == pytest.approx(expected["ppl"], rel=1e-6)
    assert found.artifact.size_gb == own.artifact.size_gb
    assert not list((tmp_path / "there").rglob("*.gguf"))
