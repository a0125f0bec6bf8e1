"""Models of a few thousand random weights, of any architecture that transformers has."""

import shutil

import torch

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def build(model_type, folder, pocket, auto="AutoModelForCausalLM", **extra):
    """A model of a type with random weights, saved with the pocket model's tokenizer."""
    import transformers

    torch.manual_seed(0)
    given = {name: value for name, value in extra.items() if value is not None}
    config = transformers.AutoConfig.for_model(model_type, **given)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket / name, folder / name)
    return folder
