"""What layers are for, told by their names, and which of them stay in 16 bits for that.

Few weights decide much there: which expert a token goes to, how fast a state forgets. The lists that
llm-compressor's recipes, vLLM and GPTQModel leave out agree on them, and so does whoever quantizes
here: the facts of a model, rounding, the native pass and other libraries ask this module alone.
"""

import re

# Two-dimensional weights of a layer that are no linear layer's.
_NO_LINEAR = re.compile(r"(norm|embed\w*|wte|wpe|relative_attention_bias)$")
# By what is said of them, the linear layers that stay.
_KEPT = {
    # Mixtral's and Qwen's gate, Hunyuan's gate.wg, Granite's router.layer, Gemma 4's router.proj.
    "router": re.compile(r"(^|[._])router(_\w+)?(\.\w+)?$|(^|\.)(gate|wg)$"),
    "gate of shared experts": re.compile(r"(^|\.)shared_experts?_gate$"),
    # Steps, decays and betas: Mamba's x_proj and dt_proj, the gated delta rule's a and b, Kimi's f.
    "small projection of a recurrence": re.compile(
        r"(^|\.)(x_proj|dt_proj|in_proj_(a|b|ba)|[ab]_proj|f_[ab]_proj)$"
    ),
    "output head": re.compile(r"(^|\.)lm_head$"),
    # DeepSeek V3.2's weights of its indexer's heads.
    "indexer": re.compile(r"(^|\.)indexer\.weights_proj$"),
}

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a layer that is one of an expert with a number, whatever the checkpoint stores."""


def is_linear_layer(name: str) -> bool:
    """Whether the matrix of a layer of this name may be a linear layer's: no norm's, no embedding's.

    >>> is_linear_layer("model.layers.0.mlp.up_proj"), is_linear_layer("model.layers.0.norm")
    (True, False)
    """
    return _NO_LINEAR.search(name) is None


def kept_as(name: str) -> str | None:
    """What a linear layer is that stays in 16 bits unless somebody asks for it; None of all others.

    A matrix that is no linear layer's stays as well.

    >>> kept_as("model.layers.0.mlp.gate"), kept_as("model.layers.0.mlp.gate_proj")
    ('router', None)
    >>> kept_as("backbone.layers.0.mixer.dt_proj")
    'small projection of a recurrence'
    """
    if not is_linear_layer(name):
        return "norm or embedding"
    return next((what for what, names in _KEPT.items() if names.search(name)), None)
