"""A checkpoint whose architecture is Python code that comes with it: a mixture of experts of its own."""

import importlib.util
import json
import shutil

import torch

from helpers.miniatures import SIZES

CODE = '''
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class PartlyConfig(LlamaConfig):
    model_type = "partly"

    def __init__(self, num_experts=4, stacked=False, **named):
        super().__init__(**named)
        self.num_experts, self.stacked = num_experts, stacked


class Expert(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, 32, bias=False)
        self.down_proj = nn.Linear(32, config.hidden_size, bias=False)

    def forward(self, states):
        return self.down_proj(torch.relu(self.up_proj(states)))


class Listed(nn.Module):
    """Experts that are modules, each of which runs for the tokens that are its own."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.num_experts))

    def forward(self, states):
        flat = states.reshape(-1, states.shape[-1])
        weights, chosen = torch.softmax(self.gate(flat), -1).max(-1)
        output = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            own = chosen == number
            if own.any():
                output[own] = expert(flat[own]) * weights[own, None]
        return output.view(states.shape)


class PartlyExperts(nn.Module):
    """All experts in two parameters that no other architecture calls so."""

    def __init__(self, config):
        super().__init__()
        count, width = config.num_experts, config.hidden_size
        self.w_in = nn.Parameter(torch.randn(count, width, 32) * 0.05)
        self.w_out = nn.Parameter(torch.randn(count, 32, width) * 0.05)

    def forward(self, states, weights):
        inner = torch.relu(torch.einsum("td,edf->etf", states, self.w_in))
        return torch.einsum("etf,efd,te->td", inner, self.w_out, weights)


class Stacked(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = PartlyExperts(config)

    def forward(self, states):
        flat = states.reshape(-1, states.shape[-1])
        return self.experts(flat, torch.softmax(self.gate(flat), -1)).view(states.shape)


class PartlyForCausalLM(LlamaForCausalLM):
    config_class = PartlyConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = (Stacked if config.stacked else Listed)(config)
        self.post_init()
'''


def custom_mixture(folder, pocket, *, experts=4, stacked=False, **sizes):
    """Such a checkpoint with random weights and the pocket model's tokenizer."""
    folder.mkdir(parents=True)
    (folder / "modeling_partly.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("modeling_partly", folder / "modeling_partly.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    config = module.PartlyConfig(**SIZES | sizes, num_experts=experts, stacked=stacked)
    module.PartlyForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket / name, folder / name)
    written = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "PartlyConfig", "AutoModelForCausalLM": "PartlyForCausalLM"}
    written["auto_map"] = {auto: f"modeling_partly.{own}" for auto, own in classes.items()}
    (folder / "config.json").write_text(json.dumps(written))
    return folder
