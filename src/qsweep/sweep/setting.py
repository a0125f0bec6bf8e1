"""What a trial's configuration refers to, looked up on this machine: model, texts, tasks, device.

No model is loaded for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.evaluate.packs.header import Pack
from qsweep.formats.artifact import Artifact
from qsweep.formats.dequantized import base_directory, dequantized_from
from qsweep.formats.hf import reference_artifact
from qsweep.models.devices import resolve_device, resolve_dtype
from qsweep.models.facts import read_facts
from qsweep.models.generation_settings import beyond_configuration, generation_settings
from qsweep.models.hub import content_hash
from qsweep.models.source import ModelFacts
from qsweep.sweep.config import TrialConfig
from qsweep.sweep.packed import (
    import_pack,
    pack_of,
    packed_artifact,
    packed_facts,
)
from qsweep.tasks.revisions import key_revisions
from qsweep.tasks.task import Task, TaskOptions
from qsweep.text.calibrated import CalibrationText, stored_calibration
from qsweep.text.stored import Text, stored_text
from qsweep.text.tokenizer_files import own_chat_template, template_file_content
from qsweep.text.vocabulary import require_embeddings


@dataclass(frozen=True)
class Setting:
    """What a trial's configuration refers to, found on this machine."""

    facts: ModelFacts
    model_hash: str
    device: str
    dtype: str
    texts: Mapping[str, Text]
    """By corpus name."""
    calibration: CalibrationText | None
    tasks: tuple[Task, ...] = ()
    task_revisions: tuple[dict[str, Any], ...] = ()
    """Of each task: what its key says beside its identity."""
    template: str | None = None
    """Of its chat template the hash, where conversations are measured and it has one."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What the model's makers say of generating beside its configuration."""
    pack: Pack | None = None
    """The reference pack that all this comes from, where the model itself is not here."""

    def reference_artifact(self) -> Artifact:
        """The unquantized model. Raises ConfigError where its files are no longer there."""
        if self.pack is not None:
            return packed_artifact(self.pack, self.facts.path)
        return reference_artifact(self.facts)


def find_setting(
    trial: TrialConfig, model: Path, store: Store, device: str | None = None
) -> Setting:
    """Look up what a trial refers to: model files, texts, device (unless it is given).

    Raises:
        QsweepError: one line on what is missing. No model is loaded; texts are, the first time, and
            a model that is given quantized alone is dequantized, the first time.
    """
    device = device or resolve_device(trial.device)
    if (pack := pack_of(trial, store)) is not None:
        return _packed_setting(trial, pack, store, device)
    model = base_directory(model, store)
    facts = read_facts(model, trial.model.name)
    facts = replace(facts, dequantized_from=dequantized_from(model))
    texts = {corpus.name: stored_text(corpus, store) for corpus in trial.corpora}
    calibration = None
    if trial.quant.uses_calibration:
        calibration = found_calibration(trial, model, store)
    calibrated = [(part.name, part.text) for part in calibration.parts] if calibration else []
    require_embeddings(model, facts.vocab_size, [*texts.items(), *calibrated])
    tasks = _find_tasks(trial, model, store)
    generation = beyond_configuration(model)
    in_chat = bool(tasks) and trial.eval.chat_template
    template = _hash(template_file_content(model)) if in_chat else None
    return Setting(
        facts=facts,
        model_hash=content_hash(model, store),
        device=device,
        dtype=resolve_dtype(trial.eval.dtype, device, model),
        texts=texts,
        calibration=calibration,
        tasks=tasks,
        task_revisions=tuple(
            key_revisions(task, facts, generation=generation, template=template) for task in tasks
        ),
        template=_template(trial, model),
        generation=generation,
    )


def found_calibration(trial: TrialConfig, model: Path, store: Store) -> CalibrationText:
    """What a trial's quantizer may see, loaded or found in the store.

    Raises:
        IncompatibleTrial: Conversations are to be packed, and the model has no chat template.
        QsweepError: A text cannot be had, or not in this way.
    """
    calibration = trial.calibration
    chats = calibration.packing == "conversations"
    template = own_chat_template(model) if chats else None
    if chats and template is None:
        raise IncompatibleTrial(
            f"calibration.packing=conversations: {trial.model.name} has no chat template (a base "
            "model?); calibration.packing=documents packs what is said without one"
        )
    return stored_calibration(calibration.blend, calibration.packing, store, template)


def _template(trial: TrialConfig, model: Path) -> str | None:
    # The model's hash is of the files that it computes with, which a template is not always in.
    if not any(corpus.assistant_only for corpus in trial.corpora):
        return None
    return _hash(own_chat_template(model))


def _hash(template: str | None) -> str | None:
    return None if template is None else key_of(template)


def _packed_setting(trial: TrialConfig, pack: Pack, store: Store, device: str) -> Setting:
    directory = import_pack(pack, store)
    return Setting(
        facts=packed_facts(pack, directory),
        model_hash=pack.header.model.content_hash,
        device=device,
        dtype=resolve_dtype(trial.eval.dtype, device, directory),
        texts={},
        calibration=None,
        pack=pack,
    )


def _find_tasks(trial: TrialConfig, model: Path, store: Store) -> tuple[Task, ...]:
    if not trial.eval.tasks:
        return ()
    from qsweep.tasks.suite import find_tasks, require_chat_template

    options = TaskOptions(
        limit=trial.eval.limit,
        num_fewshot=trial.eval.num_fewshot,
        chat_template=trial.eval.chat_template,
        unsafe_code=trial.eval.unsafe_code,
        samples=trial.eval.samples,
        steps=trial.eval.steps,
        max_new_tokens=trial.eval.max_new_tokens,
        sampling=generation_settings(model),
    )
    if options.chat_template:
        require_chat_template(model, trial.model.name)
    return find_tasks(trial.eval.tasks, options, store.root / "catalogues")
