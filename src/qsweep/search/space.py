"""What a sweep may vary, and every combination of it. Pure: values are override strings."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest

Params = dict[str, str]
"""A combination: values by the names of parameters, as on a command line."""


@dataclass(frozen=True)
class When:
    """A condition: the parameter ``name`` has one of ``values``."""

    name: str
    values: tuple[str, ...]

    def holds(self, params: Mapping[str, str]) -> bool:
        """Whether a combination, complete up to ``name``, meets the condition."""
        return params.get(self.name) in self.values

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.values)}"


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
            if when is not None and when.name not in known:
                raise ConfigError(
                    f"when {when}: {when.name!r} is not among the parameters before it"
                    f"{nearest(when.name, known)}"
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
