"""Mixes as points of a search: ``bits=3.5`` is at most so many stored bits per weight, layer by layer."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qsweep.base.errors import IncompatibleTrial, QsweepError
from qsweep.base.files import write_text
from qsweep.base.keys import key_of
from qsweep.search.budget.candidates import Family, Workshop
from qsweep.search.budget.families import family_of
from qsweep.search.budget.limits import Limit
from qsweep.search.budget.proposals import propose
from qsweep.search.budget.settings import Budget
from qsweep.search.space import Params, Space, overrides_of
from qsweep.sweep.compose import Composed
from qsweep.sweep.session import Session

# What says how many bits layers get, and what else is chosen layer by layer.
_BITS = ("bits", "quant.type")
_CHOSEN = (*_BITS, "group_size")
_FRACTION = re.compile(r"\d+\.\d+")


def mixed_bits(params: Params) -> float | None:
    """Stored bits per weight that a combination asks for; None where it is no mix.

    >>> mixed_bits({"quant": "gptq", "bits": "3.5"}), mixed_bits({"quant": "gptq", "bits": "3"})
    (3.5, None)
    """
    for name in _BITS:
        if _FRACTION.fullmatch(params.get(name, "")):
            return float(params[name])
    return None


@dataclass
class Mixes:
    """Turns points between the uniform ones into combinations that can be composed.

    Attributes:
        session: The search's sweep.
        space: What is searched; its uniform combinations are what layers are chosen from.
        compose: Makes a configuration of overrides.
    """

    session: Session
    space: Space
    compose: Callable[[Sequence[str]], Composed]
    _families: dict[tuple[tuple[str, str], ...], list[tuple[Family, list[Params]]]] = field(
        default_factory=dict
    )
    _known: dict[tuple[tuple[str, str], ...], Params] = field(default_factory=dict)

    def expand(self, params: Params) -> Params:
        """A combination without a mix: itself, or that of the mix's base with its rules.

        Raises:
            IncompatibleTrial: There is no such mix, or its candidates could not be made.
        """
        bits = mixed_bits(params)
        if bits is None:
            return params
        key = tuple(params.items())
        if key not in self._known:
            self._known[key] = self._expanded(params, bits)
        return self._known[key]

    def _expanded(self, params: Params, bits: float) -> Params:
        rest = {name: value for name, value in params.items() if name not in _CHOSEN}
        family, members = self._family(rest)
        limit = Limit(Budget("bpw", bits), None)
        found = propose(limit, family.costs)
        smallest = min(one.bpw for one in family.costs.candidates)
        if not found:
            raise IncompatibleTrial(
                f"bits={bits:g}: the smallest mix of {rest.get('quant', 'these')} has {smallest:.2f} "
                "stored bits per weight"
            )
        proposal = found[0]
        base = members[proposal.base]
        if proposal.uniform:
            return base
        name = f"{rest.get('quant', 'mix')}-{bits:g}-{key_of(rest)[:8]}"
        file = self.session.sweep.directory / "mixes" / f"{name}.yaml"
        write_text(file, "".join(f"- {rule!r}\n" for rule in proposal.rules))
        return {**base, "quant.rules": str(file)}

    def _family(self, rest: Params) -> tuple[Family, list[Params]]:
        key = tuple(rest.items())
        if key not in self._families:
            self._families[key] = self._made(rest)
        if not self._families[key]:
            raise IncompatibleTrial("nothing to mix")
        return self._families[key][0]

    def _made(self, rest: Params) -> list[tuple[Family, list[Params]]]:
        uniform = [
            params
            for params in self.space.combinations()
            if mixed_bits(params) is None
            and {n: v for n, v in params.items() if n not in _CHOSEN} == rest
        ]
        workshop = Workshop(self.session)
        by_config = {id(c := self.compose(overrides_of(p))): (c, p) for p in uniform}
        try:
            planned = workshop.plan([config for config, _ in by_config.values()])
            for one in planned:
                family_of(one.plan.trial.quant, one.name)
            workshop.require_several(planned)
            families = workshop.families(workshop.make(planned))
        except QsweepError as error:
            raise IncompatibleTrial(str(error)) from error
        return [
            (family, [by_config[id(member.config)][1] for member in family.members])
            for family in families
        ]
