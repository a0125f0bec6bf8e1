"""Text that the reference itself wrote: made by its trial, kept in the store, measured by all.

A quantized model is then asked where it would be if it had written the same so far: on the text that
its reference writes, not on somebody else's.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.base.progress import Progress
from qsweep.base.store import Store
from qsweep.sweep.artifacts import tokenizer_of
from qsweep.sweep.plan import MeasurementPlan, Plan, effective_preset
from qsweep.tasks.written import write_on
from qsweep.text.chat_template import Answered, ChatTemplate
from qsweep.text.conversations import answered_windows, cut_row
from qsweep.text.corpora import text_fingerprint
from qsweep.text.prompts import prompts
from qsweep.text.stored import FILE, Text
from qsweep.text.windows import limited_to_model

if TYPE_CHECKING:
    from qsweep.tasks.model import LanguageModel
    from qsweep.text.windows import Windows

# With fewer prompts than these a note says so.
_FEW = 8


def keep_written(
    plan: Plan,
    step: MeasurementPlan,
    store: Store,
    open_model: "Callable[[], LanguageModel]",
    progress: Progress,
) -> None:
    """Let the reference write what is measured, unless the store holds it.

    Args:
        plan: Of the reference.
        step: A measurement on such a text.
        store: Where it goes.
        open_model: Gives the reference.
        progress: Told how far it is.

    Raises:
        ConfigError: The text has no begin that leaves room, or no conversation that can be asked.
        TrialFailed: The model cannot go on.
    """
    store.build("texts", _identity(step), partial(_write, plan, step, open_model, progress))


def has_written(plan: Plan, step: MeasurementPlan, store: Store) -> bool:
    """Whether the store holds what is measured, as far as the reference had to write it."""
    if step.corpus.new_tokens is None or plan.setting.pack is not None:
        return True
    return store.find("texts", key_of(_identity(step)), full=True) is not None


def written_windows(plan: Plan, step: MeasurementPlan, store: Store) -> "Windows":
    """What the reference wrote as windows in which its own tokens are scored, and no prompt.

    Raises:
        ArtifactCorrupt: It is not in the store.
    """
    entry = store.require("texts", key_of(_identity(step)))
    text = Text(entry.path, entry.content["fingerprint"])
    preset = effective_preset(plan.trial.eval, step.preset)
    preset = limited_to_model(preset, plan.setting.facts.max_length)
    found = (cut_row(_row(document), preset.context) for document in text.documents())
    rows = list(islice((row for row in found if row is not None), preset.max_windows))
    if not rows:
        raise ConfigError(
            f"eval.context={preset.context}: no longer than the prompts of {step.corpus.name}, so "
            "that nothing is left to be scored; leave it out"
        )
    notes = {"written_by": "the reference", "new_tokens": step.corpus.new_tokens}
    if template := entry.content["template"]:
        notes["template"] = template
    return answered_windows(rows, preset, entry.content["bos"], notes)


def _identity(step: MeasurementPlan) -> dict[str, Any]:
    # Of the cached reference all but how many windows are measured.
    return {"written": {name: of for name, of in step.reference.items() if name != "overrides"}}


def _write(
    plan: Plan,
    step: MeasurementPlan,
    open_model: "Callable[[], LanguageModel]",
    progress: Progress,
    out: Path,
) -> dict[str, Any]:
    corpus, facts, lm = step.corpus, plan.setting.facts, open_model()
    assert corpus.new_tokens is not None
    lm.batch_size = None  # what is drawn depends on it, and is in no key
    tokenizer = tokenizer_of(plan)
    begins = prompts(
        plan.setting.texts[corpus.name].documents(),
        tokenizer,
        facts.max_length - corpus.new_tokens,
        facts.model_type,
        conversations=corpus.assistant_only,
    )
    if len(begins) < _FEW:
        print(
            f"note: {corpus.name}: the reference writes from {len(begins)} "
            f"{'prompt' if len(begins) == 1 else 'prompts'} only, one of each document; "
            "figures of so few texts say little",
            file=sys.stderr,
        )
    rows = write_on(lm, begins, corpus.new_tokens, partial(progress, f"write {corpus.name}"))
    documents = [json.dumps({"ids": row.ids, "from": row.answers[0][0]}) for row in rows]
    (out / FILE).write_text(json.dumps(documents), encoding="utf-8")
    bos = lm.facts["bos"]
    return {
        "fingerprint": text_fingerprint(documents),
        "bos": "none" if bos == "none" else "window",
        "template": ChatTemplate(tokenizer).name if corpus.assistant_only else None,
    }


def _row(document: str) -> Answered:
    found = json.loads(document)
    return Answered(found["ids"], [(found["from"], len(found["ids"]))])
