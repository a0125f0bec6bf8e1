"""Every quantizer and backend on CUDA: the artifact measures alike on both devices, and is served."""

import pytest

from qsweep.base.errors import IncompatibleTrial

pytestmark = pytest.mark.gpu

NAMES = [
    "rtn 4",
    "native gptq 4",
    "native gptq 3 desc_act",
    "native awq 4",
    "gptqmodel gptq 4",
    "gptqmodel gptq 8 desc_act",
    "gptqmodel awq 4",
    "gguf Q4_K_M",
]
SERVED = [(n, k) for n in ("gptqmodel gptq 4", "native gptq 4") for k in ("TORCH", "TRITON")]
SERVED += [("native gptq 4", kernel) for kernel in ("EXLLAMA_V2", "MARLIN")]
SERVED_AWQ = [("native awq 4", kernel) for kernel in ("TORCH", "GEMM_TRITON", "MARLIN")]


@pytest.fixture(scope="module")
def make(cuda, tmp_path_factory, pocket_dir, tiny_model):
    from gpu_parts.correctness import quantize

    made = {}

    def make(name, model):
        source = pocket_dir if model == "pocket" else tiny_model(model)
        if (name, model) not in made:
            out = tmp_path_factory.mktemp("artifacts") / "one"
            try:
                made[name, model] = quantize(name, source, out, cuda)
            except IncompatibleTrial as error:
                pytest.skip(str(error))
        return made[name, model], source

    return make


def test_the_list_is_complete():
    from gpu_parts.correctness import quantizers

    assert list(quantizers()) == NAMES


@pytest.mark.parametrize("model", ["pocket", "llama", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("name", NAMES)
def test_both_devices_measure_an_artifact_alike(name, model, make, cuda, tmp_path):
    from gpu_parts.correctness import agree, figures

    artifact, source = make(name, model)
    cpu, gpu = (figures(artifact, source, d, "float32", tmp_path) for d in ("cpu", cuda))
    assert agree(cpu, gpu), (cpu, gpu)
    half = figures(artifact, source, cuda, "bfloat16", tmp_path)
    assert half.itself == 0
    assert half.kld == pytest.approx(gpu.kld, rel=0.2, abs=5 * half.floor + 1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_device_finds_what_the_cpu_finds(method, cuda, pocket_dir, tmp_path):
    # Not the same codes, since sums are rounded otherwise, but weights as good.
    from gpu_parts.correctness import figures, quantize

    klds = []
    for device in ("cpu", cuda):
        artifact = quantize(f"native {method} 4", pocket_dir, tmp_path / device, device)
        klds.append(figures(artifact, pocket_dir, "cpu", "float32", tmp_path).kld)
    assert klds[1] == pytest.approx(klds[0], rel=0.1)


@pytest.mark.parametrize(("name", "kernel"), SERVED + SERVED_AWQ)
def test_gptqmodels_kernels_give_the_dense_models_logits(name, kernel, make, cuda):
    pytest.importorskip("gptqmodel")
    from gpu_parts.correctness import KERNEL_KLD, served

    artifact, source = make(name, "pocket")
    try:
        found, used = served(artifact, source, cuda, f"{artifact.format.upper()}_{kernel}")
    except (ValueError, ImportError, NotImplementedError) as error:
        pytest.skip(f"not on this machine: {error}")
    assert found <= KERNEL_KLD, used


def test_llama_cpp_gives_the_dense_models_logits(make, cuda, tmp_path):
    pytest.importorskip("llama_cpp")
    from gpu_parts.correctness import figures
    from gpu_parts.models import random_windows
    from qsweep.evaluate.serving import kld_native
    from qsweep.formats.gguf.native import can_use_gpu

    if not can_use_gpu():
        pytest.skip("llama.cpp is built without CUDA")
    artifact, source = make("gguf Q4_K_M", "pocket")
    found = kld_native(artifact, source, random_windows(4, 128, 4096), device=cuda)
    dense = figures(artifact, source, cuda, "float32", tmp_path).kld
    assert found["kld_native"] == pytest.approx(dense, rel=0.5, abs=5e-3)
