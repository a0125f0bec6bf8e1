"""What a sweep may vary, and every combination of it. Pure: values are override strings."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest

NOT_A_TRIALS = ("search", "sweep", "n_jobs", "timeout_s", "silent_kld", "launch")
"""How options begin that say nothing about a single trial."""
Params = dict[str, str]
"""A combination: values by the names of parameters, as on a command line."""

# What says how many bits layers get, and what else a mix chooses layer by layer.
_BITS = ("bits", "quant.type")
_CHOSEN = (*_BITS, "group_size")
_FRACTION = re.compile(r"\d+\.\d+")


def mixed_bits(params: Mapping[str, str]) -> float | None:
    """Stored bits per weight that a combination asks for; None where it is no mix.

    >>> mixed_bits({"quant": "gptq", "bits": "3.5"}), mixed_bits({"quant": "gptq", "bits": "3"})
    (3.5, None)
    """
    for name in _BITS:
        if _FRACTION.fullmatch(params.get(name, "")):
            return float(params[name])
    return None


def without_chosen(params: Mapping[str, str]) -> Params:
    """What a mix has in common with the uniform combinations that it is made of."""
    return {name: value for name, value in params.items() if name not in _CHOSEN}


def mix_key(params: Mapping[str, str]) -> tuple[object, ...]:
    """The same for combinations that ask for the same mix, whatever group size stands beside it."""
    return mixed_bits(params), *sorted(without_chosen(params).items())


@dataclass(frozen=True)
class Mix:
    """What a mix was found to be.

    Attributes:
        name: Of the file that its rules are written to.
        base: A uniform combination.
        rules: For the layers that differ from it, as ``quant.rules`` takes them.
    """

    name: str
    base: Params
    rules: tuple[str, ...]


@dataclass(frozen=True)
class When:
    """A condition: the parameter ``name`` has one of ``values``, and ``also`` holds."""

    name: str
    values: tuple[str, ...]
    also: "When | None" = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it looks at."""
        return (self.name, *(self.also.names if self.also else ()))

    def holds(self, params: Mapping[str, str]) -> bool:
        """Whether a combination, complete up to its names, meets the condition."""
        return params.get(self.name) in self.values and (
            self.also is None or self.also.holds(params)
        )

    def __str__(self) -> str:
        own = f"{self.name}={','.join(self.values)}"
        return own if self.also is None else f"{own} and {self.also}"


@dataclass(frozen=True)
class Parameter:
    """One name and the values that it may have, everywhere or under a condition."""

    name: str
    values: tuple[str, ...]
    when: When | None = None

    def applies(self, params: Mapping[str, str]) -> bool:
        """Whether the parameter exists beside what has been chosen so far."""
        return self.when is None or self.when.holds(params)


@dataclass(frozen=True)
class Space:
    """Parameters in the order in which they are chosen.

    >>> gptq = When("quant", ("gptq",))
    >>> space = Space((Parameter("quant", ("gptq", "awq")), Parameter("bits", ("3", "4"), gptq)))
    >>> [overrides_of(params) for params in space.combinations()]
    [['quant=gptq', 'bits=3'], ['quant=gptq', 'bits=4'], ['quant=awq']]
    """

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for parameter in self.parameters:
            when = parameter.when
            for name in when.names if when is not None else ():
                if name not in known:
                    raise ConfigError(
                        f"when {when}: {name!r} is not among the parameters before it"
                        f"{nearest(name, known)}"
                    )
            if not parameter.values:
                raise ConfigError(f"{parameter.name}: no values")
            known.add(parameter.name)

    def combinations(self) -> Iterator[Params]:
        """Every combination, the last parameter varying fastest."""

        def extend(params: Params, rest: Sequence[Parameter]) -> Iterator[Params]:
            if not rest:
                yield params
            elif not rest[0].applies(params):
                yield from extend(params, rest[1:])
            else:
                for value in rest[0].values:
                    yield from extend({**params, rest[0].name: value}, rest[1:])

        yield from extend({}, self.parameters)

    def count(self, at_most: int) -> int:
        """How many combinations there are, counted up to ``at_most``."""
        return sum(1 for _ in itertools.islice(self.combinations(), at_most))

    def label(self, parameter: Parameter) -> str:
        """A parameter's name in a study, which wants one set of values for each name."""
        alike = [p for p in self.parameters if p.name == parameter.name]
        return parameter.name if len(alike) == 1 else f"{parameter.name} ({parameter.when})"

    def describe(self) -> dict[str, str]:
        """What is varied, as readable text by label, to be compared and shown."""
        return {
            self.label(p): ",".join(p.values) + (f" when {p.when}" if p.when else "")
            for p in self.parameters
        }


def overrides_of(params: Mapping[str, str]) -> list[str]:
    """A combination as overrides."""
    return [f"{name}={value}" for name, value in params.items()]
