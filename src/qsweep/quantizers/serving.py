"""Who serves a mixture of experts that is quantized: not all who serve its container load it.

What is said of vLLM rests on its source as of 2026 (``load_weights`` of its models); of GPTQModel 7.6
and transformers 5.18 on tests (``tests/quantizers/test_owners.py``).
"""

from collections.abc import Iterable

from qsweep.formats.encoder import Encoder
from qsweep.models.facts import read_outline
from qsweep.models.source import ModelFacts
from qsweep.models.stacks import stack_places

# Stacks of which vLLM's models also know the layers that lie in them, by the names that they have here.
# Granite's and JetMoE's it looks for as w1, w2 and w3 or not at all.
_KNOWN_STACKS = ("gate_up_proj", "down_proj")
# gpt-oss, whose experts it loads from MXFP4 and Quark, with gate and up in one.
_WHOLE = ("gpt_oss",)
# Mixtures that GPTQModel was seen to load right from checkpoints that it did not make. Of others it
# expects other names (Mixtral, Phi-MoE: those that transformers has in memory), leaves experts random,
# or takes the halves of a stack's rows for gate and up where these alternate (gpt-oss).
LOADED = frozenset(
    {"deepseek_v2", "deepseek_v3", "dots1", "hunyuan_v1_moe", "olmoe"}
    | {"qwen2_moe", "qwen3_moe", "qwen3_next"}
)


def closed_to(model: ModelFacts, experts: Iterable[str], encoders: Iterable[Encoder]) -> set[str]:
    """The runtimes that do not load a model's experts as they are written.

    Args:
        model: The unquantized model.
        experts: The linear layers of experts that are quantized.
        encoders: What writes them.

    Returns:
        Names as in :attr:`Encoder.runtimes`.
    """
    experts = list(experts)
    if not experts:
        return set()
    closed = {
        name for encoder in encoders for name in encoder.runtimes if not encoder.loads_experts(name)
    }
    stored = read_outline(model.path)
    if not all(f"{name}.weight" in stored for name in experts):
        closed.add("transformers")  # its loader stacks what its own checkpoints have one by one
        places = stack_places({name: info.shape for name, info in stored.items()})
        stacks = {places[name].tensor.rpartition(".")[2] for name in experts if name in places}
        if not stacks.issubset(_KNOWN_STACKS):
            closed.add("vllm")
    if model.model_type in _WHOLE:
        closed.add("vllm")
    if model.model_type not in LOADED:
        closed.add("gptqmodel")
    return closed
