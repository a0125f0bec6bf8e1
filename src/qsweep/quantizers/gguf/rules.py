"""Rules of llama.cpp's quantizer: what they may say of which layers.

Patterns name layers as the checkpoint does, as for all other quantizers
(:mod:`qsweep.quantizers.rules`). What they say is a type of llama.cpp's (``q6_k``, ``iq4_xs``, ``f16``),
a number of bits, which is the plain type of that width, or ``keep``. The embedding and the output head,
which llama.cpp quantizes, may be named, too.

Nothing heavy is imported.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.schema import nearest
from qsweep.formats.gguf.types import (
    ALIASES,
    FILE_TYPES,
    NEEDING_IMATRIX,
    REPLACED,
    TYPES_BY_BITS,
    WRITABLE,
    TensorType,
    tensor_type,
)
from qsweep.formats.numbers import FORMATS
from qsweep.models.facts import (
    distinct_weights,
    is_embedding,
    is_head,
    is_of_text,
    read_config,
    read_outline,
)
from qsweep.models.roles import kept_as
from qsweep.models.source import ModelFacts
from qsweep.quantizers.rules import KEEP, Rule, check_rules, check_stacks, counting, whole

HEAD = "lm_head"
# What it never quantizes (``tensor_allows_quantization`` in src/llama-quant.cpp).
_NEVER = ("router", "gate of shared experts")
_WANTED = "a type of llama.cpp's, a number of bits or keep"


def typed_rule(pattern: str, value: Any) -> Rule:
    """A rule of a pattern and what it says.

    >>> [str(typed_rule("*.o_proj", value)) for value in ("Q6_K", 4, "keep", {"bits": 8}, "ternary")]
    ['*.o_proj=q6_k', '*.o_proj=q4_k', '*.o_proj=keep', '*.o_proj=q8_0', '*.o_proj=tq2_0']

    Raises:
        ConfigError: There is no such type; the nearest ones are given.
    """
    place = f"quant.rules: {pattern}"
    if not pattern:
        raise ConfigError("quant.rules: an empty pattern; '*' names every layer")
    if isinstance(value, Mapping):
        value = _only(value, place)
    if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
        word = value.strip().lower()
        return Rule(pattern, keep=True) if word == KEEP else Rule(pattern, type=_type(word, place))
    bits = whole(value, place, _WANTED)
    if bits == 16:
        return Rule(pattern, keep=True)
    if bits not in TYPES_BY_BITS:
        there = ", ".join(map(str, TYPES_BY_BITS))
        raise ConfigError(
            f"{place}: gguf has plain types of {there} bits, not {bits}; name one of them, or a type "
            "as iq4_xs"
        )
    return Rule(pattern, type=TYPES_BY_BITS[bits])


def uses_importance(rule: Rule) -> bool:
    """Whether an importance matrix counts for the layers that a rule names."""
    if rule.type is None or not tensor_type(rule.type).quantized:
        return False
    file = FILE_TYPES.get(rule.type)
    return file is None or file.imatrix != "ignored"


def outside_layers(model: ModelFacts) -> dict[str, str]:
    """The tensor of the embedding and of the output head, by the names that rules have for them.

    ``lm_head`` is the output head, whatever it is called; a model without one of its own has it in the
    embedding.
    """
    tensors = {n: info for n, info in read_outline(model.path).items() if is_of_text(n)}
    own = distinct_weights(tensors, read_config(model.path))
    outside = {n: info for n, info in tensors.items() if not re.search(r"\.\d+\.", n)}
    matrices = [n for n, info in outside.items() if len(info.shape) == 2]
    embeddings = [n for n in matrices if is_embedding(n) or n.endswith(".embeddings.weight")]
    heads = [n for n in matrices if is_head(n)]
    found = {name.removesuffix(".weight"): name for name in (*embeddings, *heads)}
    if embeddings:
        found |= {n.removesuffix(".weight"): embeddings[0] for n in heads if n not in own}
    if HEAD not in found and (heads or embeddings):
        found[HEAD] = found[(heads or embeddings)[0].removesuffix(".weight")]
    return found


def check_types(rules: Sequence[Rule], model: ModelFacts, *, imatrix: bool) -> None:
    """Refuse rules that change nothing, and those that llama.cpp cannot follow.

    Args:
        rules: In their order.
        model: The model.
        imatrix: Whether there is to be an importance matrix.

    Raises:
        IncompatibleTrial: With the rule, and what to do.
    """
    outside = outside_layers(model)
    layers = [*model.all_linears, *outside]
    there = "have the type that llama.cpp gives them"
    check_rules(rules, model.all_linears, model.name, outside, there)
    own = {name: counting(rules, name, outside) for name in layers}
    check_stacks({name: value_of(own[name]) for name in model.all_linears})
    _check_tied(own, outside)
    for name, rule in own.items():
        if rule is None or rule.keep:
            continue
        place, what = f"quant.rules: {rule.pattern}", kept_as(name)
        if what in _NEVER:
            raise IncompatibleTrial(
                f"{place}: llama.cpp never quantizes {name} ({what}); take it out"
            )
        wanted = tensor_type(rule.type or "")
        shape = model.all_linears.get(name)
        if shape is not None:
            check_blocks(place, wanted, name, shape[1])
        fits = shape is None or shape[1] % wanted.block == 0
        if wanted.name in NEEDING_IMATRIX and not imatrix and name not in outside and fits:
            raise IncompatibleTrial(
                f"{place}: gguf {wanted.name} needs an importance matrix: set quant.imatrix=true"
            )
    tied = {outside[n] for n, rule in own.items() if n in outside and rule and not rule.keep}
    rest = [rule for n, rule in own.items() if outside.get(n) not in tied or n not in outside]
    if not tied and all(rule is not None and rule.keep for rule in rest):
        raise IncompatibleTrial(
            f"quant.rules keep every linear layer of {model.name} in 16 bits, so that nothing is "
            "left to quantize"
        )


def _check_tied(own: Mapping[str, Rule | None], outside: Mapping[str, str]) -> None:
    shared: dict[str, list[tuple[str, Rule]]] = {}
    for name, tensor in outside.items():
        if (rule := own[name]) is not None:
            shared.setdefault(tensor, []).append((name, rule))
    for named in shared.values():
        told = asked(named)
        if len({rule.value for _, rule in told}) > 1:
            (one, _), (other, _) = told[0], next(n for n in told if n[1].value != told[0][1].value)
            raise IncompatibleTrial(
                f"quant.rules: {one} and {other} are one matrix in this model, and they differ; name "
                "both alike, or one of them"
            )


def asked(named: Sequence[tuple[str, Rule]]) -> Sequence[tuple[str, Rule]]:
    """Of one tensor by several names, those that a pattern ends in, if it does in any."""
    return [(name, rule) for name, rule in named if rule.asks_for(name)] or named


def check_blocks(place: str, wanted: TensorType, layer: str, inputs: int) -> None:
    """Refuse a type whose blocks a layer's inputs do not fill, and that nothing is put in place of.

    Args:
        place: The rule, for messages.
        wanted: The type.
        layer: The layer, for messages.
        inputs: How many it has.

    Raises:
        IncompatibleTrial: Says so.
    """
    if inputs % wanted.block and wanted.name not in REPLACED:
        raise IncompatibleTrial(
            f"{place}: gguf {wanted.name} packs {wanted.block} weights together, which do not divide "
            f"the {inputs} inputs of {layer}; name another type, or keep"
        )


def value_of(rule: Rule | None) -> str | None:
    """What a rule says, in few words; None where there is none."""
    return None if rule is None else rule.value


def _only(given: Mapping[Any, Any], place: str) -> Any:
    names = ("bits", "type", "format")
    for name in given:
        if name == "group_size":
            raise ConfigError(f"{place}.group_size: each type of llama.cpp's fixes it; take it out")
        if name not in names:
            raise ConfigError(f"{place}: no such option {name!r}{nearest(str(name), names)}")
    if len(given) != 1:
        told = (
            "an empty mapping" if not given else f"{' and '.join(map(str, given))} both name a type"
        )
        raise ConfigError(f"{place}: {told}; say {_WANTED}")
    return next(iter(given.values()))


def _type(word: str, place: str) -> str:
    upper = word.upper()
    if upper in WRITABLE:
        return upper
    named = FORMATS.get(word)
    if named is not None and named.gguf in WRITABLE:
        return str(named.gguf)
    if upper in FILE_TYPES or upper in ALIASES:
        plain = "_".join(upper.split("_")[:2])
        near = f"; for instance {plain.lower()}" if plain in WRITABLE else ""
        raise ConfigError(f"{place}: {word} is a mixture of types; name one{near}")
    known = (KEEP, *(name.lower() for name in WRITABLE))
    raise ConfigError(f"{place}: llama.cpp has no tensor type {word!r}{nearest(word, known)}")
