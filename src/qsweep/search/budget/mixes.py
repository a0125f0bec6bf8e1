"""Mixes as points of a search: ``bits=3.5`` is at most so many stored bits per weight, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qsweep.base.console import say
from qsweep.base.errors import IncompatibleTrial, QsweepError
from qsweep.base.files import write_text
from qsweep.base.keys import key_of
from qsweep.quantizers.protocol import Quantizer
from qsweep.quantizers.rules_file import as_file
from qsweep.search.budget.candidates import Family, Workshop
from qsweep.search.budget.families import family_of
from qsweep.search.budget.limits import Limit
from qsweep.search.budget.proposals import propose
from qsweep.search.budget.settings import Budget
from qsweep.search.space import (
    Mix,
    Params,
    Space,
    mix_key,
    mixed_bits,
    overrides_of,
    without_chosen,
)
from qsweep.sweep.compose import Composed
from qsweep.sweep.overrides import spelled
from qsweep.sweep.session import Session

_RULES = "quant.rules"
# This share of what is asked for stays free: what an artifact stores is counted by that of others,
# and here nobody makes it anew where it turns out larger.
_MARGIN = 1e-3


@dataclass(frozen=True)
class _Found:
    """A family and the combination of the space that each of its members is."""

    family: Family
    members: tuple[Params, ...]


@dataclass
class Mixes:
    """Finds out what a point between the uniform ones is.

    Attributes:
        session: The search's sweep.
        space: What is searched; its uniform combinations are what layers are chosen from.
        compose: Makes a configuration of overrides.
        why_not: Says why what a quantizer makes, with a quantized KV cache or without, is of no use;
            nothing where it is.
    """

    session: Session
    space: Space
    compose: Callable[[Sequence[str]], Composed]
    why_not: Callable[[Quantizer, bool], str]
    # By what its members have in common, and by mix; a text says why there is none.
    _families: dict[tuple[tuple[str, str], ...], _Found | str] = field(default_factory=dict)
    _known: dict[tuple[object, ...], Mix | str] = field(default_factory=dict)

    def find(self, params: Params) -> Mix:
        """What a combination that asks for a mix was found to be.

        Uniform artifacts that its layers are chosen from, and that the store lacks, are made now, in
        one pass for all mixes of the family. What failed is not tried again.

        Raises:
            IncompatibleTrial: There is no such mix, or its candidates could not be made.
        """
        bits, key = mixed_bits(params), mix_key(params)
        assert bits is not None
        if key not in self._known:
            self._known[key] = self._mix(without_chosen(params), bits)
        found = self._known[key]
        if isinstance(found, str):
            raise IncompatibleTrial(found)
        return found

    @property
    def lines(self) -> list[str]:
        """Of which uniform artifacts there are no mixes, and why, for the answer."""
        return list(dict.fromkeys(one for one in self._families.values() if isinstance(one, str)))

    def _mix(self, rest: Params, bits: float) -> Mix | str:
        found = self._family(rest)
        if isinstance(found, str):
            return found
        costs, members = found.family.costs, found.members
        limit = Limit(Budget("bpw", bits), None)
        proposals = propose(limit, costs, excess=round(_MARGIN * bits * costs.weights / 8))
        if not proposals:
            smallest = min(one.bpw for one in costs.candidates)
            return (
                f"no mix of {bits:g} bits: the smallest of {_name(rest)} has {smallest:.2f} stored "
                "bits per weight"
            )
        proposal = proposals[0]
        base = members[proposal.base]
        if proposal.uniform:
            return Mix("", base, ())
        rules = tuple(found.family.rules(proposal))
        # The same file only for the same rules: it may be read at any time.
        return Mix(f"{_name(rest)}-{bits:g}-{key_of([rest, *rules])[:8]}", base, rules)

    def _family(self, rest: Params) -> _Found | str:
        key = tuple(rest.items())
        if key not in self._families:
            try:
                self._families[key] = self._made(rest)
            except QsweepError as error:
                why = str(error).removeprefix("budget: ").removeprefix(f"{_name(rest)}: ")
                line = f"no mixes of {self._told(rest)}: {why}"
                say(line)
                self._families[key] = line
        return self._families[key]

    def _told(self, rest: Params) -> str:
        # Not what all combinations have in common.
        varied = {p.name for p in self.space.parameters if len(p.values) > 1} | {"quant"}
        return " ".join(overrides_of({n: v for n, v in rest.items() if n in varied}))

    def _made(self, rest: Params) -> _Found:
        uniform = [
            params
            for params in self.space.combinations()
            if mixed_bits(params) is None and without_chosen(params) == rest
        ]
        configs = [self.compose(overrides_of(params)) for params in uniform]
        of_config = {id(config): params for config, params in zip(configs, uniform, strict=True)}
        workshop = Workshop(self.session)
        planned = workshop.plan(configs)
        # Before anything is made.
        for one in planned:
            trial = one.plan.trial
            if why := self.why_not(trial.quant, bool(trial.kv_cache)):
                workshop.left_out[trial.name] = why
        planned = [one for one in planned if one.name not in workshop.left_out]
        for one in planned:
            family_of(one.plan.trial.quant, one.name)
        workshop.require_several(planned)
        family = workshop.families(workshop.make(planned))[0]
        return _Found(family, tuple(of_config[id(member.config)] for member in family.members))


def overrides_with(mix: Mix, directory: Path) -> Params:
    """What a mix is composed of; its rules are written to a file of a sweep's folder, if they are not.

    Args:
        mix: The mix.
        directory: The sweep's.
    """
    if not mix.rules:
        return mix.base
    file = directory / "mixes" / f"{mix.name}.yaml"
    if not file.is_file():
        write_text(file, as_file(mix.rules))
    base = {name: value for name, value in mix.base.items() if name.lstrip("+~") != _RULES}
    # No file of the configuration names the option.
    return {**base, f"++{_RULES}": spelled(str(file), _RULES)}


def _name(rest: Params) -> str:
    return rest.get("quant", "mix")
