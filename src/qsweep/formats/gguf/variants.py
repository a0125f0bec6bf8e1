"""What other makers' files do otherwise than our own conversion, and rightly so.

The rules of a layout name tensors as llama.cpp's converter of today does. Another file of the same
model may hold the tied head once more or not at all, query, key and value in one tensor, experts each
by itself or gate and up together, a name of former days, or no layers for multi-token prediction. Here
the rules are led to where things are instead. Where whole rows lie together in a larger tensor, that
part of it is a tensor by itself: rows take whole bytes.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qsweep.formats.gguf.blocks import Block
from qsweep.formats.gguf.reader import GGUFFile, GGUFTensor
from qsweep.formats.gguf.rules import Layout, Rule

if TYPE_CHECKING:
    from qsweep.formats.gguf.checkpoint import Checkpoint

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# How the head is called in a checkpoint that ties it to the embedding and so does not store it.
_TIED_HEAD = "lm_head.weight"
_BLOCK = re.compile(r"^blk\.(?P<layer>\d+)\.(?P<part>.+)\.(?P<kind>weight|bias)$")
_FUSED = ("attn_q", "attn_k", "attn_v")
_EXPERTS = {"ffn_gate_exps": 0, "ffn_up_exps": 1}
# Names that converters wrote before, or write of some models: each of a pair stands for the other.
_OTHER_NAMES = (("post_attention_norm", "ffn_norm"), ("ssm_ba", "ssm_beta_alpha"))
# Types of weights that converters write a factor beside: NVFP4, and BitNet's before it was in them.
_WITH_FACTOR = ("NVFP4", "TQ1_0", "TQ2_0")
# Parts that llama.cpp runs without: layers that predict further tokens, towers for images and sounds.
_OPTIONAL = re.compile(r"(^|\.)nextn\.|^(v|mm|a)\.|^mtp\.")


@dataclass(frozen=True)
class Fitted:
    """A file and the rules that lead from it to a checkpoint.

    ``notes`` say in a few words each what it does otherwise than our own conversion; ``missing`` is
    the first tensor that is needed and is nowhere, None if all are there.
    """

    layout: Layout
    file: GGUFFile
    checkpoint: "Checkpoint"
    notes: tuple[str, ...] = ()
    missing: str | None = None


def fit(layout: Layout, checkpoint: "Checkpoint", file: GGUFFile) -> Fitted:
    """Lead the rules of our own conversion to where a file of any maker has things.

    Args:
        layout: Where our own unquantized conversion has each tensor of the checkpoint.
        checkpoint: The model.
        file: The file.
    """
    fitter = _Fitter(layout, checkpoint, file)
    rules: dict[str, Rule] = {}
    missing = None
    for name, rule in layout.rules.items():
        found = fitter.rule(name, rule)
        if found is not None:
            rules[name] = found
        elif missing is None and not fitter.is_optional(rule):
            missing = next(t for t in rule.tensors if t not in fitter.tensors)
    rules |= fitter.own_head(rules)
    tensors = dict(fitter.tensors)
    for name in (EMBEDDING, HEAD):
        fitter.cut_padding(name, rules, tensors)
    return Fitted(
        Layout(rules, layout.orders),
        replace(file, tensors=tensors),
        checkpoint,
        tuple(dict.fromkeys(fitter.notes)),
        missing,
    )


def is_extra(name: str, fitted: Fitted) -> bool:
    """Whether a tensor that no rule leads to is one that llama.cpp computes without, or computes.

    Those are tables of angles, factors, layers for further tokens, towers for images and sounds; and
    what something that a rule leads to lies in.
    """
    layers = fitted.file.setting("block_count")
    further = fitted.file.setting("nextn_predict_layers")
    found = _BLOCK.match(name)
    known = isinstance(layers, int) and isinstance(further, int)
    if found is not None and known and int(found["layer"]) >= layers - further:
        return True
    if name.endswith(".scale"):
        return factor_of(fitted.file, f"{name.removesuffix('.scale')}.weight") == name
    if re.search(r"^rope_|\.input_scale$", name) or _OPTIONAL.search(name):
        return True
    return found is not None and found["part"] in ("attn_qkv", "ffn_gate_up_exps")


def factor_of(file: GGUFFile, name: str, layout: Layout | None = None) -> str | None:
    """The tensor that all of another one's numbers are multiplied by, as NVFP4's are; None: none.

    It has one number, or one for each matrix of a stack. The output of the layer is what llama.cpp
    multiplies, which is the same (``build_lora_mm`` in ``llama-graph.cpp``). Parameters of a model
    are called so too, and are no factors: those of Gemma 4's router and of each of its experts, and
    Talkie's (``conversion/gemma.py`` and ``conversion/talkie.py`` in llama.cpp).

    Args:
        file: The file.
        name: The tensor that may have a factor.
        layout: Where a checkpoint lies in the file: what it leads to is a parameter.
    """
    factor = name.removesuffix(".weight") + ".scale"
    if not name.endswith(".weight") or name not in file.tensors or factor not in file.tensors:
        return None
    tensor, numbers = file.tensors[name], file.tensors[factor].weights
    if tensor.type.name not in _WITH_FACTOR:
        return None
    if layout is not None and factor in layout.places:
        return None
    return factor if numbers in (1, tensor.shape[0] if len(tensor.shape) > 2 else 1) else None


class _Fitter:
    def __init__(self, layout: Layout, checkpoint: "Checkpoint", file: GGUFFile):
        self.layout = layout
        self.checkpoint = checkpoint
        self.file = file
        self.tensors: dict[str, GGUFTensor] = dict(file.tensors)
        self.notes: list[str] = []
        # Rows of what our own conversion has in a tensor of its own.
        self.rows = {
            rule.tensor: checkpoint.infos[name].shape[0]
            for name, rule in layout.rules.items()
            if rule.blocks is None and rule.slice is None and checkpoint.infos[name].shape
        }

    def rule(self, name: str, rule: Rule) -> Rule | None:
        """The rule as it holds for the file; None if something that it needs is nowhere."""
        if all(tensor in self.tensors for tensor in rule.tensors):
            return rule
        if rule.blocks is not None:
            return None
        for other in self._other_names(rule.tensor):
            if other in self.tensors:
                self.notes.append(f"{_folded(rule.tensor)} is called {_folded(other)}")
                return replace(rule, tensor=other)
        if rule.tensor == HEAD and EMBEDDING in self.tensors:
            self.notes.append("the head is the embedding")
            return replace(rule, tensor=EMBEDDING)
        if rule.slice is not None:
            return self._expert(rule, rule.slice)
        if self._part_of_fused(rule.tensor):
            return rule
        return self._joined(name, rule)

    def is_optional(self, rule: Rule) -> bool:
        """Whether a file may leave out what a rule leads to."""
        layers = self.file.setting("block_count")
        found = _BLOCK.match(rule.tensor)
        beyond = found is not None and isinstance(layers, int) and int(found["layer"]) >= layers
        if not beyond and not _OPTIONAL.search(rule.tensor):
            return False
        self.notes.append(f"{_folded(rule.tensor)} is left out")
        return True

    def own_head(self, rules: Mapping[str, Rule]) -> dict[str, Rule]:
        """The rule of a head that the file stores and our own conversion ties to the embedding."""
        if HEAD not in self.tensors or any(rule.tensor == HEAD for rule in rules.values()):
            return {}
        tied = [
            name
            for name, rule in rules.items()
            if rule.tensor == EMBEDDING and re.search(r"(^|\.)(lm_head|embed_out)\.weight$", name)
        ]
        self.notes.append("the tied head is stored once more")
        return dict.fromkeys(tied or [_TIED_HEAD], Rule(HEAD))

    def cut_padding(
        self, name: str, rules: Mapping[str, Rule], tensors: dict[str, GGUFTensor]
    ) -> None:
        """Leave out rows that only fill the vocabulary up to a round number."""
        shapes = [
            self.checkpoint.infos[source].shape
            for source, rule in rules.items()
            if rule.tensor == name and source in self.checkpoint.infos
        ]
        embedding = [
            self.checkpoint.infos[s].shape for s, r in rules.items()
            if r.tensor == EMBEDDING and s in self.checkpoint.infos
        ]  # fmt: skip
        wanted, found = next(iter(shapes or embedding), ()), tensors.get(name)
        if found is None or len(wanted) != 2 or len(found.shape) != 2:
            return
        rows, own = wanted[0], found.shape[0]
        if rows != own and wanted[1] == found.shape[1]:
            self.notes.append(f"{name} has {own} rows, of which the model has {rows}")
            if own > rows:
                tensors[name] = replace(found, shape=(rows, found.shape[1]))

    def _other_names(self, tensor: str) -> Iterator[str]:
        stem, _, kind = tensor.rpartition(".")
        if kind in ("weight", "bias"):
            yield stem  # a vector whose kind was not written, as exp_probs_b and ssm_a
        else:
            yield from (f"{tensor}.weight", f"{tensor}.bias")
        for pair in _OTHER_NAMES:
            for one, other in (pair, pair[::-1]):
                if f".{one}." in tensor:
                    yield tensor.replace(f".{one}.", f".{other}.")

    def _expert(self, rule: Rule, index: int) -> Rule | None:
        """One expert's matrix, that the file does not have in a stack of such matrices."""
        found = _BLOCK.match(rule.tensor)
        if found is None:
            return None
        prefix, part = f"blk.{found['layer']}", found["part"]
        single = f"{prefix}.{part.removesuffix('_exps')}.{index}.{found['kind']}"
        if single in self.tensors:
            self.notes.append(f"{_folded(rule.tensor)} is a tensor for each expert")
            return replace(rule, tensor=single, slice=None)
        both = self.tensors.get(f"{prefix}.ffn_gate_up_exps.{found['kind']}")
        if both is None or part not in _EXPERTS or len(both.shape) < 2 or both.shape[1] % 2:
            return None
        half = both.shape[1] // 2
        first = index * both.shape[1] + _EXPERTS[part] * half
        name = f"{rule.tensor}[{index}]"
        self.tensors[name] = _rows_of(both, name, first, (half, *both.shape[2:]))
        self._take_factor(both.name, name)
        self.notes.append(f"{_folded(rule.tensor)} lies in {_folded(both.name)}")
        return replace(rule, tensor=name, slice=None)

    def _part_of_fused(self, tensor: str) -> bool:
        """Whether a query's, key's or value's rows lie in a tensor of all three, now by themselves."""
        found = _BLOCK.match(tensor)
        if found is None or found["part"] not in _FUSED:
            return False
        prefix, kind = f"blk.{found['layer']}", found["kind"]
        fused = self.tensors.get(f"{prefix}.attn_qkv.{kind}")
        rows = [self.rows.get(f"{prefix}.{part}.{kind}", -1) for part in _FUSED]
        if fused is None or min(rows) < 1 or fused.shape[0] != sum(rows):
            return False
        for i, part in enumerate(_FUSED):
            name = f"{prefix}.{part}.{kind}"
            shape = (rows[i], *fused.shape[1:])
            self.tensors.setdefault(name, _rows_of(fused, name, sum(rows[:i]), shape))
            self._take_factor(fused.name, name)
        self.notes.append(f"{_folded(tensor)} lies in {_folded(fused.name)}")
        return True

    def _joined(self, name: str, rule: Rule) -> Rule | None:
        """A tensor of query, key and value, whose three parts the file has by themselves."""
        found = _BLOCK.match(rule.tensor)
        if found is None or found["part"] != "attn_qkv" or rule != Rule(rule.tensor):
            return None
        parts = [f"blk.{found['layer']}.{part}.{found['kind']}" for part in _FUSED]
        if any(part not in self.tensors for part in parts):
            return None
        blocks, at = [], 0
        for part in parts:
            rows = self.tensors[part].shape[0]
            blocks.append(Block(part, at, 0, rows))
            at += rows
        self.notes.append(f"{_folded(rule.tensor)} lies in {_folded(parts[0])} and two others")
        return Rule(parts[0], shape=self.checkpoint.infos[name].shape, blocks=tuple(blocks))

    def _take_factor(self, fused: str, name: str) -> None:
        factor = factor_of(self.file, fused, self.layout)
        if factor is not None and math.prod(self.tensors[factor].shape) == 1:
            own = name.removesuffix(".weight") + ".scale"
            self.tensors[own] = replace(self.tensors[factor], name=own)


def _rows_of(tensor: GGUFTensor, name: str, first: int, shape: tuple[int, ...]) -> GGUFTensor:
    """Rows of a tensor from the one numbered ``first`` on, as a tensor of this shape."""
    columns = shape[-1] if len(shape) > 1 else 1
    offset = tensor.offset + first * tensor.type.bytes_of(columns)
    return replace(tensor, name=name, shape=shape, offset=offset)


def _folded(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "blk.*.", re.sub(r"\[\d+\]$", "", name))
