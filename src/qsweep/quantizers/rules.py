"""Rules per module: which layers of a model get other bits or another number format, or stay in 16 bits.

``quant.rules`` is an ordered mapping of patterns to what the layers are that they name, a list of
``pattern=value``, or a file with one of these. The first pattern that matches a layer counts, as in
GPTQModel's ``dynamic``, into which rules are written and which vLLM reads alike. A pattern is a glob
over the layer's name in the checkpoint, without ``.weight``: ``*`` stands for any text, dots included,
``?`` for one letter, ``[0-3]`` for one of some.

Layers that stay in 16 bits by what they are (:mod:`qsweep.models.roles`) are quantized only by a
pattern that ends in their name: ``*.mlp.gate`` asks for a router, ``*.mlp.*`` does not.

Nothing heavy is imported.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.schema import nearest
from qsweep.formats.numbers import FORMATS, Int, NumberFormat
from qsweep.models.roles import kept_as
from qsweep.quantizers.alike import stack_of
from qsweep.quantizers.rules_file import read_file

KEEP = "keep"
_OPTIONS = ("bits", "group_size", "format")
# In a pattern, a set of letters, any text, any letter.
_WILD = re.compile(r"\[!?[^\]]+\]|\*|\?")
ReadsRule = Callable[[str, Any], "Rule"]


@dataclass(frozen=True)
class Rule:
    """What the layers are that a pattern names.

    Attributes:
        pattern: A glob over names of layers.
        options: The quantizer's options that differ: ``bits``, ``group_size``.
        format: What codes mean, where that differs.
        type: The type of tensors, where a container has types rather than formats: llama.cpp's.
        keep: Whether the layers stay in 16 bits.
    """

    pattern: str
    options: tuple[tuple[str, int], ...] = ()
    format: NumberFormat | None = None
    keep: bool = False
    type: str | None = None

    @cached_property
    def expression(self) -> str:
        r"""The pattern as a regular expression for whole names.

        One that ends in ``.*`` also means the module whose parts it names: a server that has all
        experts of a layer in one asks for that.

        >>> Rule("*.experts.*").expression
        '.*\\.experts(\\..*)?'
        """
        *parts, last = _pieces(self.pattern)
        if last == ".*" and parts and parts[-1].endswith(r"\."):
            return "".join(parts).removesuffix(r"\.") + r"(\..*)?"
        return "".join([*parts, last])

    def matches(self, layer: str) -> bool:
        """Whether the pattern names a layer."""
        return self._compiled.fullmatch(layer) is not None

    def asks_for(self, layer: str) -> bool:
        """Whether it does so by the last part of the layer's name."""
        last = self.pattern.rpartition(".")[2]
        return self.matches(layer) and not _WILD.search(last)

    @property
    def value(self) -> str:
        """What it says, in few words: ``keep``, ``8``, ``nvfp4``, ``bits:3,group_size:64``."""
        if self.keep:
            return KEEP
        if self.type is not None:
            return self.type.lower()
        told: dict[str, Any] = dict(self.options)
        if self.format is not None:
            told = {"format": self.format.name, **told}
        if len(told) == 1 and (only := next(iter(told))) in ("bits", "format"):
            return str(told[only])
        return ",".join(f"{name}:{value}" for name, value in told.items())

    def __str__(self) -> str:
        return f"{self.pattern}={self.value}"

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.expression)


def read_rules(given: Any, rule: ReadsRule | None = None) -> tuple[Rule, ...]:
    """Rules as ``quant.rules`` has them: pattern to ``keep``, bits, a format's name, or a mapping.

    They may also be a list of their own texts, which keeps its order wherever it is written, and a
    file's path, with either of these in YAML or JSON (:mod:`qsweep.quantizers.rules_file`).

    >>> [str(rule) for rule in read_rules({"*.down_proj": 8, "*.up_proj": {"bits": 3, "group_size": 64}})]
    ['*.down_proj=8', '*.up_proj=bits:3,group_size:64']
    >>> read_rules(["*.down_proj=8"]) == read_rules({"*.down_proj": 8})
    True

    Args:
        given: The rules.
        rule: What makes a rule of a pattern and its value; by default bits and number formats.

    Raises:
        ConfigError: A value is none of these; of a typo, with the nearest word. One pattern has two
            values. The file is not there, or holds something else.
    """
    rule = rule or _rule
    if given is None:
        return ()
    if isinstance(given, (str, PathLike)):
        try:
            return read_rules(read_file(str(given)), rule)
        except ConfigError as error:
            told = str(error)
            if told.startswith("quant.rules="):
                raise
            raise ConfigError(
                f"quant.rules={given}: {told.removeprefix('quant.rules: ')}"
            ) from error
    if isinstance(given, (list, tuple)):
        read = [one if isinstance(one, Rule) else _read(one, rule) for one in given]
    elif isinstance(given, Mapping):
        read = [rule(str(pattern).strip(), value) for pattern, value in given.items()]
    else:
        raise ConfigError(
            f"quant.rules={given}: must be a mapping of patterns, as in {{*.down_proj: 8}}, or a file"
        )
    return tuple(_once(read))


def rule_of(rules: Sequence[Rule], layer: str) -> Rule | None:
    """The rule that counts for a layer: the first that matches its name."""
    return next((rule for rule in rules if rule.matches(layer)), None)


def reason_to_keep(rule: Rule | None, layer: str) -> str | None:
    """Why a layer stays in 16 bits, by its name and the rule that counts; None if it does not."""
    if rule is not None and rule.keep:
        return f"quant.rules: {rule.pattern}"
    if rule is not None and rule.asks_for(layer):
        return None
    return kept_as(layer)


def check_rules(
    rules: Sequence[Rule],
    layers: Iterable[str],
    model: str,
    outside: Collection[str] = (),
    otherwise: str = "stay in 16 bits",
) -> None:
    """Refuse rules that change nothing in a model.

    Args:
        rules: In their order.
        layers: The names of its linear layers, those that stay in 16 bits by default among them.
        model: Its name.
        outside: Names of its embedding and its output head, where these can be quantized.
        otherwise: What becomes of what only a pattern that ends in its name means.

    Raises:
        IncompatibleTrial: No layer is called like that, with the nearest names; others come first;
            or all layers of the name stay in 16 bits anyway.
    """
    head_stays, layers = not outside, [*layers, *(outside or ["lm_head"])]
    for number, rule in enumerate(rules):
        named = [layer for layer in layers if rule.matches(layer)]
        if not named:
            raise IncompatibleTrial(
                f"quant.rules: no linear layer of {model} is called {rule.pattern!r}"
                f"{nearest(rule.pattern, _common_patterns(layers))}"
            )
        first = {rule_of(rules, layer) for layer in named}
        if rule not in first:
            before = next(one for one in rules[:number] if one in first)
            raise IncompatibleTrial(
                f"quant.rules: {rule.pattern!r} changes nothing, for {before.pattern!r} stands before "
                "it, and the first rule that matches a layer counts; put it first"
            )
        own = [layer for layer in named if rule_of(rules, layer) is rule]
        if not rule.keep and head_stays and own == ["lm_head"]:
            raise IncompatibleTrial("quant.rules: lm_head stays in 16 bits here; take it out")
        if not any(rule.keep or rule.asks_for(n) or _is_usual(n, outside) for n in own):
            what, name = kept_as(own[0]) or "output head", own[0].rpartition(".")[2]
            asking = name if name == own[0] else f"*.{name}"
            raise IncompatibleTrial(
                f"quant.rules: {rule.pattern!r} names no layer but {own[0]} and its like ({what}), "
                f"which {otherwise} unless a pattern ends in the name, as {asking!r}"
            )


def counting(rules: Sequence[Rule], layer: str, outside: Collection[str] = ()) -> Rule | None:
    """The rule that decides of a layer; None where none does.

    What stays as it is by what it is, and what lies outside of the decoder's layers, is quantized only
    by a pattern that ends in its name.
    """
    rule = rule_of(rules, layer)
    if rule is None or rule.keep or rule.asks_for(layer):
        return rule
    return rule if _is_usual(layer, outside) else None


def check_stacks(made: Mapping[str, Any]) -> None:
    """Refuse rules that tell experts of a layer apart which lie in one tensor.

    Args:
        made: What each linear layer is made by its name.

    Raises:
        IncompatibleTrial: Names the experts.
    """
    first: dict[str, Any] = {}
    for name, own in made.items():
        stack = stack_of(name)
        if first.setdefault(stack, own) != own:
            raise IncompatibleTrial(
                f"quant.rules: gguf has the experts of a layer in one tensor, and those of {stack} "
                "differ; name them all"
            )


def _is_usual(layer: str, outside: Collection[str]) -> bool:
    return kept_as(layer) is None and layer not in outside


def _once(rules: Iterable[Rule]) -> Iterator[Rule]:
    first: dict[str, Rule] = {}
    for rule in rules:
        try:
            rule.matches("")
        except re.error as error:
            raise ConfigError(f"quant.rules: {rule.pattern}: is no pattern ({error})") from error
        known = first.setdefault(rule.pattern, rule)
        if known.value != rule.value:
            raise ConfigError(
                f"quant.rules: {rule.pattern}: is said to be {known.value} and {rule.value}; leave one "
                "of them out"
            )
        if known is rule:
            yield rule


def _read(text: Any, rule: ReadsRule) -> Rule:
    pattern, separator, value = str(text).partition("=")
    if not separator:
        raise ConfigError(f"quant.rules: {text}: must be PATTERN=VALUE, as in *.down_proj=8")
    if ":" not in value:
        return rule(pattern.strip(), value)
    parts = [part.partition(":") for part in value.split(",")]
    return rule(pattern.strip(), {name.strip(): own.strip() for name, _, own in parts})


def _rule(pattern: str, value: Any) -> Rule:
    place = f"quant.rules: {pattern}"
    if not pattern:
        raise ConfigError("quant.rules: an empty pattern; '*' names every layer")
    if isinstance(value, Mapping):
        return _detailed(pattern, value, place)
    if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
        word = value.strip().lower()
        if word == KEEP:
            return Rule(pattern, keep=True)
        return Rule(pattern, format=_format(word, place, (KEEP, *FORMATS)))
    bits = whole(value, place, "a number of bits, keep, a format's name or a mapping of options")
    return Rule(pattern, keep=True) if bits == 16 else _checked(pattern, {"bits": bits}, None)


def _detailed(pattern: str, given: Mapping[Any, Any], place: str) -> Rule:
    for name in given:
        if name not in _OPTIONS:
            raise ConfigError(f"{place}: no such option {name!r}{nearest(str(name), _OPTIONS)}")
    if not given:
        raise ConfigError(f"{place}: an empty mapping; say keep, bits or a format")
    number = None
    if "format" in given:
        number = _format(str(given["format"]).lower(), f"{place}.format", FORMATS)
    options: dict[str, int] = {}
    for name in ("bits", "group_size"):
        if name in given:
            options[name] = whole(given[name], f"{place}.{name}", "a whole number")
            if number is not None and name in number.fixed:
                raise ConfigError(f"{place}.{name}: format={number.name} fixes it; take it out")
    return _checked(pattern, options, number)


def _checked(pattern: str, options: Mapping[str, int], number: NumberFormat | None) -> Rule:
    place = f"quant.rules: {pattern}"
    if options.get("bits", 1) < 1:
        raise ConfigError(f"{place}: bits={options['bits']}: must be at least 1")
    size = options.get("group_size", -1)
    if size != -1 and size < 1:
        raise ConfigError(f"{place}: group_size={size}: must be -1 (one group per row) or positive")
    if isinstance(number, Int) and number.name == "int" and not options:
        raise ConfigError(f"{place}: int leaves the bits open; say how many")
    return Rule(pattern, tuple(options.items()), number)


def _format(word: str, place: str, known: Iterable[str]) -> NumberFormat:
    if word not in FORMATS:
        raise ConfigError(f"{place}: no such format {word!r}{nearest(word, known)}")
    return FORMATS[word]()


def whole(value: Any, place: str, wanted: str) -> int:
    """A whole number, in text perhaps. Raises ConfigError, which says what is wanted."""
    try:
        if isinstance(value, bool) or float(value) != int(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{place}={value}: must be {wanted}") from None


def _pieces(pattern: str) -> Iterator[str]:
    start = 0
    for found in _WILD.finditer(pattern):
        if text := pattern[start : found.start()]:
            yield re.escape(text)
        wild = {"*": ".*", "?": "."}.get(found[0])
        yield wild or found[0].replace("[!", "[^", 1)
        start = found.end()
    if text := pattern[start:]:
        yield re.escape(text)


def _common_patterns(layers: Iterable[str]) -> set[str]:
    """Patterns that name layers of all decoder layers: by their last parts, longer and shorter."""
    found = set()
    for layer in layers:
        parts = layer.split(".")
        numbered = max((n for n, part in enumerate(parts) if part.isdecimal()), default=-1)
        found |= {"*." + ".".join(parts[n:]) for n in range(numbered + 1, len(parts))}
    return found
