"""Who serves a quantized checkpoint of a certain model: not all who serve its container load it.

What is said of vLLM rests on its source as of 2026 (``load_weights`` of its models); of GPTQModel 7.6
and transformers 5.18 on tests (``tests/quantizers/test_owners.py``).
"""

from collections.abc import Collection

from qsweep.models.architecture import CAUSAL, auto_class
from qsweep.models.facts import read_config, read_outline, text_config
from qsweep.models.source import ModelFacts
from qsweep.models.stacks import stack_places

# Stacks of which vLLM's models also know the layers that lie in them, by the names that they have here.
# Granite's and JetMoE's it looks for as w1, w2 and w3 or not at all.
_KNOWN_STACKS = ("gate_up_proj", "down_proj")
# gpt-oss, whose experts it loads from MXFP4 and Quark, with gate and up in one.
_WHOLE = ("gpt_oss",)
# Whose experts transformers makes linear layers of before it loads from these two containers
# (``MODULES_TO_PATCH_FOR_QUANTIZATION``).
_TAKEN_APART = ("llama4", "llama4_text")
# Mixtures that GPTQModel was seen to load right from checkpoints that it did not make. Of others it
# expects other names (Mixtral, Phi-MoE: those that transformers has in memory), leaves experts random,
# or takes the halves of a stack's rows for gate and up where these alternate (gpt-oss).
LOADED = frozenset(
    {"deepseek_v2", "deepseek_v3", "dots1", "hunyuan_v1_moe", "olmoe"}
    | {"qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"}
)


def closed_to(
    model: ModelFacts, experts: Collection[str], holder: str, unreadable: Collection[str]
) -> set[str]:
    """The runtimes that do not load a model, its experts stored one by one.

    Args:
        model: The unquantized model.
        experts: The linear layers of experts that are quantized, as the artifact calls them; none of a
            dense model.
        holder: The container.
        unreadable: Those that do not load experts from such codes, whatever they are called; see
            :meth:`qsweep.formats.encoder.Encoder.loads_experts`.

    Returns:
        Names as in :attr:`qsweep.formats.artifact.Artifact.runtimes`.
    """
    closed = set[str]()
    config = read_config(model.path)
    if text_config(config) != config or auto_class(config) != CAUSAL:
        closed.add("gptqmodel")  # of image-text checkpoints it wants names as they are in memory
    if not experts:
        return closed
    closed.update(unreadable)
    if model.model_type not in LOADED:
        closed.add("gptqmodel")
    stored = read_outline(model.path)
    stacked = [name for name in experts if f"{name}.weight" not in stored]
    if stacked:
        closed.add("transformers")  # its loader stacks what its own checkpoints have one by one
        places = stack_places({name: info.shape for name, info in stored.items()})
        stacks = {places[n].tensor.rpartition(".")[2] if n in places else "" for n in stacked}
        known = model.model_type not in _WHOLE and stacks.issubset(_KNOWN_STACKS)
        if not known or holder == "bitsandbytes":
            closed.add("vllm")
    if model.model_type in _TAKEN_APART and holder in ("compressed-tensors", "bitsandbytes"):
        closed.discard("transformers")
    return closed
