"""Tasks of lm-evaluation-harness on the dense engine: its prompts and its scoring, our model."""

import contextlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qsweep.base.progress import Progress
from qsweep.tasks.harness_catalogue import Leaf
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.task import TaskOptions, TaskResult, TaskUnavailable
from qsweep.tasks.text_model import labelled

if TYPE_CHECKING:
    from qsweep.tasks.harness_model import DenseModel

# Capabilities and what the names of their tasks and groups begin with; the longest counts.
_PREFIXES = {
    "knowledge": "mmlu triviaqa nq_open sciq openbookqa truthfulqa",
    "chinese": "ceval cmmlu",
    "code": "humaneval mbpp",
    "math": "gsm8k hendrycks_math minerva_math mathqa asdiv arithmetic",
    "reasoning": "bbh arc ai2_arc gpqa musr winogrande piqa boolq logiqa commonsense_qa",
    "instruction": "ifeval",
    "completion": "hellaswag lambada wikitext c4",
}
_CAPABILITY = {
    prefix: capability for capability, words in _PREFIXES.items() for prefix in words.split()
}
# Of a task's metrics the one that is compared: the first of these that it has.
_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "em", "f1")
_FEWSHOT_SEED = 1234
# Packages that are not called like the module in them, as far as tasks import them.
_PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "antlr4": "antlr4-python3-runtime==4.11",
    "bs4": "beautifulsoup4",
    "pkg_resources": "'setuptools<82'",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def capability_of(name: str) -> str:
    """The capability that a task or group of the harness measures; ``other`` if none is known."""
    known = [prefix for prefix in _CAPABILITY if name.startswith(prefix)]
    return _CAPABILITY[max(known, key=len)] if known else "other"


@dataclass(frozen=True)
class HarnessTask:
    """One task of the harness; see :class:`qsweep.tasks.task.Task`."""

    leaf: Leaf
    group: str
    capability: str
    options: TaskOptions
    version: str

    @property
    def name(self) -> str:
        """The harness's name of it."""
        return self.leaf.name

    def identity(self) -> dict[str, Any]:
        """Name and version determine its prompts; its data is the hub's."""
        return {
            "harness": self.version,
            "task": self.name,
            "overrides": [list(pair) for pair in self.leaf.overrides],
            "limit": self.options.limit,
            "fewshot": self.options.num_fewshot,
            "chat_template": self.options.chat_template,
        }

    def prepare(self) -> None:
        """Get its data. Raises TaskUnavailable."""
        self.load()

    def run(self, lm: LanguageModel, progress: Progress) -> TaskResult:
        """Let the harness ask and score it."""
        from qsweep.tasks.harness_model import DenseModel

        return self.ask(DenseModel(lm, labelled(progress, f"task {self.name}")))

    def ask(self, adapter: "DenseModel") -> TaskResult:
        """Let the harness ask whatever answers in its terms, and score that."""
        from lm_eval import evaluator

        task = self.load()
        if self.options.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=self.options.num_fewshot)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        found = evaluator.evaluate(
            lm=adapter,
            task_dict={"tasks": {self.name: task}},
            limit=self.options.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=self.options.chat_template,
            fewshot_as_multiturn=self.options.chat_template,
            confirm_run_unsafe_code=self.options.unsafe_code,
        )
        assert found is not None
        samples = found["samples"][self.name]
        facts = {
            "fewshot": task.config.num_fewshot or 0,
            "chat_template": self.options.chat_template,
            "harness": self.version,
            "task_version": str(task.VERSION),
            "dataset": str(getattr(task, "DATASET_PATH", "")),
            "fewshot_seed": _FEWSHOT_SEED,
        }
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            return _rolling(samples, adapter.rolling_tokens, facts)
        return _scored(samples, task, facts)

    def load(self) -> Any:
        """The harness's own task. Raises TaskUnavailable."""
        try:
            task = _load_task(self.leaf)
        except Exception as error:  # whatever datasets, the hub's client and tasks may raise
            raise TaskUnavailable(f"{self.name}: {_one_line_of(error, self.leaf)}") from error
        if getattr(task, "UNSAFE_CODE", False) and not self.options.unsafe_code:
            raise TaskUnavailable(
                f"{self.name}: the harness would run generated code without a sandbox; use "
                "humaneval, or set eval.unsafe_code=true"
            )
        return task


def _scored(samples: Sequence[Mapping[str, Any]], task: Any, facts: dict[str, Any]) -> TaskResult:
    # Several filters are several readings of one answer; the task's first is its own.
    names = list(dict.fromkeys(str(s["filter"]) for s in samples))
    own = sorted((s for s in samples if s["filter"] == names[0]), key=lambda s: s["doc_id"])
    metric = _metric(own)
    scores = [float(s[metric]) for s in own]
    guesses = (
        [1 / len(s["arguments"]) for s in own] if task.OUTPUT_TYPE == "multiple_choice" else []
    )
    if any(not 0 <= score <= 1 for score in scores):
        raise TaskUnavailable(f"{task.config.task}: {metric} is no score between 0 and 1")
    return TaskResult(
        metric=metric,
        scores=scores,
        ids=[_id(s) for s in own],
        chance=sum(guesses) / len(guesses) if guesses else 0.0,
        chosen=_chosen(own, task, metric),
        facts={**facts, "filter": names[0], "other_metrics": _means(samples)},
        samples=[_shown(s, s[metric]) for s in own],
    )


def _chosen(samples: Sequence[Mapping[str, Any]], task: Any, metric: str) -> list[int] | None:
    """Which choice each sample was answered by, as the harness scores them; None without choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in ("acc", "acc_norm"):
        return None
    found = []
    for sample in samples:
        choices = task.doc_to_choice(sample["doc"])
        # Beyond the choices may follow the same without the question.
        values = [float(response[0]) for response in sample["filtered_resps"][: len(choices)]]
        if metric == "acc_norm":
            values = [v / len(choice) for v, choice in zip(values, choices, strict=True)]
        found.append(max(range(len(values)), key=values.__getitem__))
    return found


def _rolling(
    samples: Sequence[Mapping[str, Any]], tokens: Mapping[str, int], facts: dict[str, Any]
) -> TaskResult:
    own = sorted(samples, key=lambda s: s["doc_id"])
    texts = [s["arguments"][0][0] for s in own]
    return TaskResult(
        metric="nll",
        scores=[-float(s["filtered_resps"][0]) for s in own],
        ids=[_id(s) for s in own],
        chance=0.0,
        weights=[float(tokens[text]) for text in texts],
        facts=facts,
        samples=[_shown(s, s["filtered_resps"][0]) for s in own],
    )


def _metric(samples: Sequence[Mapping[str, Any]]) -> str:
    metrics = [m for m in samples[0]["metrics"] if isinstance(samples[0][m], (int, float, bool))]
    for name in (*_METRICS, *metrics):
        if name in metrics:
            return name
    raise TaskUnavailable(f"none of its metrics is one number per sample: {samples[0]['metrics']}")


def _means(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        for name in sample["metrics"]:
            if isinstance(sample[name], (int, float)):
                found.setdefault(f"{name},{sample['filter']}", []).append(float(sample[name]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _id(sample: Mapping[str, Any]) -> str:
    # Not the prompt: a chat template may write today's date into it.
    return f"{sample['doc_id']}-{sample['doc_hash'][:12]}-{sample['target_hash'][:4]}"


def _shown(sample: Mapping[str, Any], score: Any) -> dict[str, Any]:
    return {
        "prompt": sample["arguments"][0][0],
        "answer": sample["target"],
        "said": sample["filtered_resps"],
        "score": float(score),
    }


@lru_cache(maxsize=2)
def _load_task(leaf: Leaf) -> Any:
    _offline_if_unreachable()
    overrides = {name: json.loads(value) for name, value in leaf.overrides}
    # Only a group may change a task of the index.
    changed = {"group": "qsweep", "task": [{"task": leaf.name, **overrides}]}
    with _quiet():
        found = _manager(leaf.folder).load([changed if overrides else leaf.name])
    return found["tasks"][leaf.name]


@lru_cache(maxsize=4)
def _manager(folder: str) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@lru_cache(maxsize=1)
def _offline_if_unreachable() -> None:
    """Ask the hub once with a short patience: its libraries would retry for half a minute a task."""
    import datasets.config
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # no name, no route, no answer: the transport's own kinds
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"


def install_advice(module: str) -> str:
    """What to install for a module that a task of the harness imports.

    Only what the harness itself declares: a package of the module's name may be a stranger's.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    root = module.partition(".")[0]
    package = canonicalize_name(Requirement(_PACKAGES.get(root, root).strip("'")).name)
    for ours in ("qsweep", "lm_eval"):
        for line in importlib.metadata.requires(ours) or ():
            requirement = Requirement(line)
            extra = re.search(r"extra == ['\"]([\w-]+)", str(requirement.marker or ""))
            if canonicalize_name(requirement.name) == package and extra:
                return f'pip install "{ours}[{extra[1]}]"'
    if root in _PACKAGES:
        return f"pip install {_PACKAGES[root]}"
    return "its README in lm-evaluation-harness names the package to install"


def _one_line_of(error: Exception, leaf: Leaf) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, ModuleNotFoundError):
        return f"needs the module {error.name}: {install_advice(str(error.name))}"
    if "gated" in first:
        return "its data set is gated; accept its terms on the hub and log in (hf auth login)"
    offline = ("offline", "reach", "connect", "find the request")
    if isinstance(error, (ConnectionError, FileNotFoundError)) or any(
        word in first.lower() for word in offline
    ):
        return (
            "its data set is not in the cache and the hub cannot be reached; check the network and "
            f"HF_HUB_OFFLINE ({first[:160]})"
        )
    return f"{type(error).__name__}: {first[:300]}"
