"""Making a reference pack of a reference that the store holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError
from qsweep.base.keys import key_of
from qsweep.base.scratch import ScratchFolder
from qsweep.base.secrets import hidden_tree
from qsweep.base.store import Store
from qsweep.base.version import __version__
from qsweep.evaluate.packs.header import PackedMeasurement, PackedModel, PackHeader
from qsweep.evaluate.packs.heads import EXACT
from qsweep.formats.artifact import to_content
from qsweep.models.facts import distinct_weights, read_config, read_tensors
from qsweep.sweep.artifacts import tokenizer_of
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import MeasurementPlan, Plan
from qsweep.sweep.planning import plan_all
from qsweep.sweep.trial import windows_of
from qsweep.text.tokenizer_fingerprint import chat_template_hash, tokenizer_fingerprint
from qsweep.text.windows import PRESETS

if TYPE_CHECKING:
    from torch import Tensor

    from qsweep.evaluate.packs.heads import HeadWeight
    from qsweep.text.windows import Windows


@dataclass(frozen=True)
class PackSummary:
    """What went into a pack: its signature, windows, scored tokens, and bytes of its parts."""

    signature: str
    windows: int
    tokens: int
    states_bytes: int
    head_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class _Measured:
    """One measurement of the reference, with where the store has its parts."""

    plan: Plan
    step: MeasurementPlan
    windows: "Windows"
    cache: Path
    content: dict[str, Any]
    facts: dict[str, Any]


def reference_plans(configs: Sequence[Composed], store: Store) -> list[Plan]:
    """The plans of references that configurations describe.

    Raises:
        QsweepError: one cannot be measured.
    """
    trials = [trial_config(config) for config in configs]
    plans, refused = plan_all(trials, store)
    for item in refused:
        raise QsweepError(item.reason)
    return list(plans.values())


def cut_to_tokens(config: Composed, tokens: int, store: Store) -> list[Composed]:
    """The configuration for each corpus and preset apart, of no more windows than it takes.

    ``eval.max_windows`` becomes the number of the first windows in which so many tokens are scored.

    Raises:
        QsweepError: of a corpus it is not known yet, for the reference has to write it.
    """
    plan = reference_plans([config], store)[0]
    cut = []
    for step in plan.measurements:
        if step.corpus.new_tokens is not None:
            raise QsweepError(
                f"--tokens={tokens}: how much the reference writes for {step.corpus.name} is known "
                "once it has; give eval.max_windows=N in place of it"
            )
        scored = windows_of(plan, step, store).counts.cumsum(0)
        count = min(int((scored < tokens).sum()) + 1, len(scored))
        name = step.corpus.name
        changes: dict[str, Any] = {"max_windows": count, "primary": None}
        if step.preset in PRESETS:
            changes["presets"] = [step.preset]
        if count == len(scored) and config["eval"]["max_windows"] is None:
            changes["max_windows"] = None
        one = Composed(_narrowed(config, name, changes))
        one.written = _narrowed(config.written, name, changes)
        cut.append(one)
    return cut


def write_reference_pack(plans: Sequence[Plan], store: Store, out: Path, head: str) -> PackSummary:
    """Write what the store holds of measured references of one model as one file.

    Args:
        plans: Of the unquantized model; all their measurements are taken.
        store: Where they lie.
        out: The file; what was there is replaced.
        head: ``exact``, or what the output head's weights are narrowed to.

    Raises:
        QsweepError: one line: something is not in the store, or a narrower head would add more to a
            divergence than the noise floor.
    """
    import torch

    from qsweep.evaluate.packs.file import narrowed, write_frame, write_pack
    from qsweep.evaluate.packs.heads import encoded, head_weights

    measured = [_find(plan, step, store) for plan in plans for step in plan.measurements]
    plan, facts = measured[0].plan, measured[0].facts
    source, config = plan.setting.facts.path, _config_text(plan)
    dtype = getattr(torch, facts["dtype"])
    weights: dict[str, HeadWeight] = {}
    if facts["body"] is not None:
        weights = head_weights(source, facts["body"], dtype, plan.trial.model.trust_remote_code)
    elif head != EXACT:
        raise QsweepError(f"--head={head}: of {plan.trial.model.name} the logits are kept, no head")
    with ScratchFolder() as scratch:
        frame = Path(scratch) / "head"
        frame.mkdir()
        write_frame(frame, config, narrowed(weights, head, dtype))
        probes, added = _check_head(measured, frame, head)
    header = PackHeader(
        model=_model(plan, config),
        measurements=tuple(map(_packed, measured)),
        head=head,
        dtype=facts["dtype"],
        device_type=facts["device_type"],
        qsweep=__version__,
        added=added,
    )
    parts = [(one.windows, one.cache) for one in measured]
    out.parent.mkdir(parents=True, exist_ok=True)
    signature = write_pack(out, header, parts, weights, probes, source)
    packed = [p for weight in weights.values() for p in encoded(weight, head).values()]
    return PackSummary(
        signature=signature,
        windows=sum(len(one.windows.ids) for one in measured),
        tokens=sum(one.windows.tokens_scored for one in measured),
        states_bytes=sum(_states_bytes(one) for one in measured),
        head_bytes=sum(part.streamed().size for part in packed),
        file_bytes=out.stat().st_size,
    )


def _find(plan: Plan, step: MeasurementPlan, store: Store) -> _Measured:
    from qsweep.evaluate.reference import read_cache

    cache = store.require("references", key_of(step.reference))
    entry = store.require("measurements", step.key)
    facts = read_cache(cache.path)[0]
    windows = windows_of(plan, step, store)
    if windows.fingerprint != facts["fingerprint"]:
        raise QsweepError(f"{cache.path}: was measured on other windows; delete it")
    return _Measured(plan, step, windows, cache.path, entry.content, facts)


def _check_head(
    measured: Sequence[_Measured], frame: Path, head: str
) -> tuple[list["Tensor"], float]:
    """Open the head that will be packed: the logits that it gives, and what it adds.

    Raises:
        QsweepError: it does not give the cached logits, or it adds more than the noise floor.
    """
    import torch

    from qsweep.evaluate import open_reference
    from qsweep.evaluate.head import load_output_head
    from qsweep.evaluate.packs.heads import added_divergence

    probes, added = [], 0.0
    for one in measured:
        setting = one.plan.setting
        dtype = getattr(torch, one.facts["dtype"])
        if head == EXACT:
            reference = open_reference(one.cache, frame, setting.device, dtype)
            probes.append(_probe(reference.head, reference, setting.device))
            continue
        reference = open_reference(
            one.cache,
            setting.facts.path,
            setting.device,
            dtype,
            trust_remote_code=one.plan.trial.model.trust_remote_code,
        )
        divergence = added_divergence(frame, reference, one.windows.ids[one.windows.scored])
        floor = _packed(one).noise_floor
        if floor is None:
            raise QsweepError(f"--head={head}: needs the noise floor; leave eval.noise_floor on")
        if not divergence <= floor:
            raise QsweepError(
                f"--head={head}: adds {divergence:.1e} to a token's divergence on "
                f"{one.step.corpus.name} ({one.step.preset}), more than the reference's noise floor "
                f"of {floor:.1e}; pack the head as it is, or run the reference in fewer bits "
                "(eval.dtype)"
            )
        added = max(added, divergence)
        narrow = load_output_head(frame, one.facts["body"], dtype, setting.device)
        probes.append(_probe(narrow, reference, setting.device))
    return probes, added


def _probe(head: Any, reference: Any, device: str) -> "Tensor":
    import torch

    from qsweep.evaluate.reference import PROBED_TOKENS

    with torch.inference_mode():
        states = reference.features(slice(0, min(PROBED_TOKENS, len(reference.nll))))
        found: Tensor = head.logits(states.to(device)).cpu().clone()
    return found


def _packed(one: _Measured) -> PackedMeasurement:
    corpus = one.step.corpus
    return PackedMeasurement(
        corpus=corpus.name,
        source=hidden_tree({k: v for k, v in vars(corpus).items() if k != "name"}),
        preset=one.step.preset,
        cut=one.windows.preset,
        bos=one.windows.bos,
        reference=one.step.reference,
        measurement=one.step.identity,
        content=one.content,
        cache={name: value for name, value in one.facts.items() if name != "ends"},
    )


def _model(plan: Plan, config: str) -> PackedModel:
    facts, tokenizer = plan.setting.facts, tokenizer_of(plan)
    return PackedModel(
        name=facts.name,
        content_hash=plan.setting.model_hash,
        config=config,
        model_type=facts.model_type,
        linears=facts.linears,
        parameters=facts.parameters,
        max_length=facts.max_length,
        vocab_size=facts.vocab_size,
        experts=facts.experts,
        tensors={
            name: (info.dtype, list(info.shape))
            for name, info in distinct_weights(
                read_tensors(facts.path), read_config(facts.path)
            ).items()
        },
        artifact=to_content(plan.setting.reference_artifact()),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_hash(tokenizer),
    )


def _config_text(plan: Plan) -> str:
    file = plan.setting.facts.path / "config.json"
    text = file.read_text(encoding="utf-8")
    if plan.trial.model.trust_remote_code and '"auto_map"' in text:
        raise QsweepError(f"{file}: the model needs code of its own, which a pack never holds")
    return text


def _states_bytes(one: _Measured) -> int:
    from qsweep.evaluate.reference import read_cache

    row = read_cache(one.cache)[2].read(slice(0, 1))
    return one.windows.tokens_scored * row.shape[1] * row.element_size()


def _narrowed(config: Any, corpus: str, changes: dict[str, Any]) -> dict[str, Any]:
    groups = {"corpus": _only(config["corpus"], corpus), "eval": {**config["eval"], **changes}}
    return {**config, **groups}


def _only(corpora: Any, name: str) -> dict[str, Any]:
    # A choice's own name may be another than that of the text (corpus=file).
    chosen = {k: v for k, v in corpora.items() if isinstance(v, dict) and v.get("name", k) == name}
    return chosen or {k: v for k, v in corpora.items() if k == name}
