"""Which architectures the matrix has."""

from dataclasses import dataclass

from miniatures import CAUSAL, IMAGE_TEXT

# Those of models that read images which are in use, and whose text part is a decoder.
SEEING = (
    *(
        "aria",
        "aya_vision",
        "cohere2_vision",
        "cohere_compass",
        "deepseek_vl",
        "deepseek_vl_hybrid",
    ),
    *("ernie4_5_vl_moe", "exaone4_5", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "glm46v"),
    *("glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "granite4_vision", "hunyuan_vl", "idefics2"),
    *(
        "idefics3",
        "internvl",
        "kimi_k25",
        "lfm2_vl",
        "lighton_ocr",
        "llama4",
        "llava",
        "llava_next",
    ),
    *("llava_onevision", "minicpmv4_6", "minimax_m3_vl", "mistral3", "mistral4", "mllama"),
    *("nemotron_h_omni", "ovis2", "paligemma", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl"),
    *("qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe"),
    *("qwen4_exp", "smolvlm", "step3p7", "video_llama_3", "vipllava"),
)


# Classes of the mapping that give no logits of a next token of text by themselves.
_DRAFTS = "it drafts tokens from the hidden states of a larger model"
_SOUND = "it predicts codes of sound, several in a step"
NOT_ALONE = {
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
}


@dataclass(frozen=True)
class Architecture:
    """A type of model, and the automatic class that builds it."""

    model_type: str
    auto: str

    @property
    def name(self) -> str:
        """The model type; where it sees, with that said."""
        return self.model_type if self.auto == CAUSAL else f"{self.model_type} (images)"

    @property
    def file(self) -> str:
        """Its name in files."""
        return self.name.replace(" (", "-").rstrip(")")


def architectures() -> list[Architecture]:
    """One for each class in transformers' mapping of causal language models, then those that see.

    Of two types with one class, that of the text part alone counts, or that which the configuration
    itself bears as its type.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    causal: dict[str, str] = {}
    for model_type, built in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if built in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
            continue
        own = CONFIG_MAPPING[model_type].model_type == model_type
        if (
            built not in causal
            or model_type.endswith("_text")
            or (own and "_text" not in causal[built])
        ):
            causal[built] = model_type
    return [
        *(Architecture(name, CAUSAL) for name in sorted(causal.values())),
        *(Architecture(name, IMAGE_TEXT) for name in SEEING),
    ]
