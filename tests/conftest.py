"""Fixtures that every test may use: the embedded model and random-weight miniatures."""

import os
import shutil
from pathlib import Path

import pytest

from helpers import sweeps
from helpers.planned import planned  # noqa: F401
from helpers.postgresql import postgresql_server
from helpers.trackers import empty_database, outputs  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Test files that run side by side share the cores; PyTorch reads this when it is imported.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

ROOT = Path(__file__).resolve().parents[1]

# What every miniature shares; each is as small as K-quants (256) or speed allow.
_COMMON = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    },
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 256,
    },
    "gpt_neox": {"tie_word_embeddings": False},
    "stablelm": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
        },
    },
    "phi": {
        "intermediate_size": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.5,
        },
    },
    "deepseek_v2": {
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "mamba": {"state_size": 16, "time_step_rank": 16},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 128,
    },
    "falcon_h1": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_d_ssm": 512,
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_n_groups": 2,
        "mamba_d_state": 32,
        "embedding_multiplier": 1.5,
        "key_multiplier": 0.7,
        "mlp_multipliers": [0.8, 0.9],
        "ssm_multipliers": [0.8, 0.9, 1.1, 1.2, 0.7],
    },
    "qwen3_5_text": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a PostgreSQL server of our own, on loopback."""
    with postgresql_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def pocket_dir() -> Path:
    """The embedded model's directory."""
    from qsweep.models.tiny import MODEL_DIR

    return MODEL_DIR


@pytest.fixture(scope="session")
def mixture_dir() -> Path:
    """A trained mixture of eight experts (qwen3_moe); its README.md says how it was made."""
    return ROOT / "tests" / "trained" / "moe"


@pytest.fixture(scope="session")
def hybrid_dir() -> Path:
    """A trained hybrid of linear and full attention (qwen3_5_text)."""
    return ROOT / "tests" / "trained" / "hybrid"


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all test processes of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def conversions(shared) -> Path:
    """A folder for directories of artifacts, beside which a model is converted to GGUF once for all."""
    (folder := shared / "conversions").mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def pocket_conversion(pocket_dir, conversions):
    """The embedded model's unquantized GGUF file."""
    pytest.importorskip("llama_cpp")
    from qsweep.base.errors import BackendUnavailable
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.conversion.base import unquantized

    # What is converted from a directory beside it finds the conversion, too.
    (out := conversions / "base").mkdir(exist_ok=True)
    try:
        with unquantized(SourceModel(read_facts(pocket_dir, "pocket"), "cpu"), out) as base:
            yield base
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model(shared, pocket_dir):
    """``tiny_model("qwen3")`` gives the directory of a random-weight miniature of that type."""
    from qsweep.base.locks import FileLock

    def make(architecture: str) -> Path:
        path = shared / "models" / architecture
        with FileLock(shared / f"{architecture}.lock"):
            if not path.exists():
                _make_tiny(architecture, path.with_name(f".{architecture}"), pocket_dir)
                path.with_name(f".{architecture}").rename(path)
        return path

    return make


def _make_tiny(architecture: str, path: Path, pocket_dir: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(_COMMON | _ARCHITECTURES[architecture]))
    model = AutoModelForCausalLM.from_config(config)
    # Larger than the default initialisation, so that logits differ enough to be compared.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    model.to(torch.bfloat16).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket_dir / name, path / name)


@pytest.fixture(scope="module")
def warm_jobs():
    """What a module's sweeps in this process fork their jobs from is started once."""
    with sweeps.warm_jobs():
        yield


@pytest.fixture(scope="session")
def sandbox():
    """The sandbox that generated programs are run in here."""
    from qsweep.tasks.sandbox import find_sandbox
    from qsweep.tasks.task import TaskUnavailable

    try:
        return find_sandbox()
    except TaskUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def one_thread():
    """Miniatures gain nothing from threads, and lose much where others use the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
