"""Uniform candidates as they are made, what their layers cost, and the mixes that come of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qsweep.base.console import say
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.formats.artifact import Artifact
from qsweep.formats.stored_bits import bits_of, stored_layers
from qsweep.models.facts import read_tensors
from qsweep.quantizers.alike import fused_with
from qsweep.search.budget.costs import Candidate, Costs, costs_of
from qsweep.search.budget.families import family_of, values_of
from qsweep.search.budget.proposals import Proposal
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.make import make_artifacts
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import plan_all
from qsweep.sweep.sensitivity import sensitivities
from qsweep.sweep.session import Session


@dataclass(frozen=True)
class Planned:
    """A configuration, and what it makes."""

    config: Composed
    plan: Plan

    @property
    def name(self) -> str:
        """What its trial is called."""
        return self.plan.trial.name


@dataclass(frozen=True)
class Made(Planned):
    """One whose artifact is in the store."""

    artifact: Artifact


@dataclass(frozen=True)
class Family:
    """Candidates that can be mixed in one artifact, and what that costs."""

    costs: Costs
    members: tuple[Made, ...]

    def rules(self, proposal: Proposal) -> list[str]:
        """All rules of a mix: its base's own, which settle the layers that they name, come first."""
        base = self.members[proposal.base].plan.trial.quant
        return [*base.options().get("rules", []), *proposal.rules]

    def mixed(self, proposal: Proposal) -> Composed:
        """The configuration of a mix: that of its base, with rules for the layers that differ."""
        base, rules = self.members[proposal.base], self.rules(proposal)
        config = copy.deepcopy(base.config)
        written = copy.deepcopy(base.config.written)
        config["quant"] = {**config["quant"], "rules": rules}
        config.written = {**written, "quant": {**written["quant"], "rules": rules}}
        return config


@dataclass
class Workshop:
    """Makes candidates and mixes for a sweep, and says what came of each.

    Attributes:
        session: The sweep.
        fuse: Whether layers that vLLM fuses have to be alike; ``auto``: where it may serve them.
        left_out: What could not be made, by name, and why.
    """

    session: Session
    fuse: bool | Literal["auto"] = "auto"
    left_out: dict[str, str] = field(default_factory=dict)

    def plan(self, configs: Sequence[Composed]) -> list[Planned]:
        """Plans of different keys; what cannot exist is noted as left out. Raises ConfigError."""
        store, settings = self.session.store, self.session.settings
        found: dict[str, Planned] = {}
        for config in configs:
            trial = identified(trial_config(config), store)
            plans, refused = plan_all([trial], store, settings)
            if refused:
                self.left_out[trial.name] = refused[0].reason
                continue
            plan = next((p for p in reversed(plans.values()) if not p.is_reference), None)
            if plan is None:
                raise ConfigError(
                    "budget: quant=none is no candidate; the reference is measured anyway"
                )
            found.setdefault(plan.key, Planned(config, plan))
        return list(found.values())

    def make(self, planned: Sequence[Planned]) -> list[Made]:
        """Their artifacts; what could not be made is noted as left out, and said."""
        artifacts, reasons = make_artifacts(
            self.session, {one.plan.key: one.plan for one in planned}
        )
        for one in planned:
            if reason := reasons.get(one.plan.key):
                self.left_out[one.name] = reason
                say(f"{one.name}: left out: {reason}")
        return [
            Made(one.config, one.plan, artifacts[one.plan.key])
            for one in planned
            if one.plan.key in artifacts
        ]

    def require_several(self, found: Sequence[Any]) -> None:
        """Refuse to mix what is not there. Raises QsweepError."""
        if len(found) > 1:
            return
        why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
        raise QsweepError(
            f"budget: {len(found)} candidate{'s' * (len(found) != 1)} to mix, two are the least"
            + (f": {why}" if why else "; give bits, or quant.type, several values")
        )

    def families(self, candidates: Sequence[Made]) -> list[Family]:
        """Candidates by what can be mixed, with costs; some may be alone. Raises ConfigError if all are."""
        losses = sensitivities(self.session, [one.plan for one in candidates])
        groups: dict[Any, list[Made]] = {}
        for one in candidates:
            groups.setdefault(family_of(one.plan.trial.quant, one.name), []).append(one)
        if all(len(members) == 1 for members in groups.values()):
            raise ConfigError(
                "budget: no two candidates can be mixed in one artifact; let bits, group_size or "
                "format have several values for one quantizer"
            )
        return [Family(self._costs(own, losses), tuple(own)) for own in groups.values()]

    def _costs(self, members: Sequence[Made], losses: Mapping[str, Mapping[str, float]]) -> Costs:
        facts = members[0].plan.setting.facts
        shapes: dict[str, tuple[int, ...]] = dict(facts.all_linears)
        for name, tensor in read_tensors(facts.path).items():
            shapes.setdefault(name.removesuffix(".weight"), tensor.shape)
        made = []
        for one in members:
            own = losses[one.plan.artifact_key]
            stored = stored_layers(one.artifact, facts, own)
            size = one.artifact.size
            made.append(
                Candidate(
                    name=one.name,
                    values=values_of(one.plan.trial.quant, facts, stored),
                    bits=bits_of(stored, shapes),
                    losses=own,
                    bytes=size.weight_bytes,
                    linear_bits=size.linear_bits,
                    linear_weights=size.linear_weights,
                )
            )
        # Of GGUF's, whose layers run one by one, only a stack of experts has to be alike.
        holder = members[0].artifact.format
        if self.fuse != "auto":
            holder = "gptq" if self.fuse else "gguf"
        return costs_of(made, _alike(list(made[0].losses), holder), facts.all_linears)


def _alike(names: Sequence[str], holder: str) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(fused_with(name, holder), []).append(name)
    return [tuple(group) for group in groups.values()]
