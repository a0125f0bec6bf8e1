"""lm-evaluation-harness on the dense engine: its own model class is what ours is measured by."""

import json
import random

import pytest
import torch

from qsweep.base.errors import BackendUnavailable, ConfigError
from qsweep.base.progress import silent
from qsweep.tasks import harness_catalogue
from qsweep.tasks.harness import HarnessTask, capability_of
from qsweep.tasks.harness_catalogue import Catalogue, open_catalogue, search
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Sampling
from qsweep.tasks.suite import find_tasks, require_chat_template
from qsweep.tasks.task import TaskOptions, TaskUnavailable

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'qsweep[tasks]'")

CHOICE = """task: offline_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{options}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATE = """task: offline_generate
tag: offline_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{options[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
FUSED = """task: offline_fused
dataset_path: json
dataset_kwargs: {{data_files: {{test: {fused}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{call}}}}"
doc_to_target: 0
doc_to_choice: [")", "x)", "x, y)"]
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """task: offline_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
GROUP = """group: offline_group
task:
  - offline_choice
  - task: offline_generate
    num_fewshot: 1
"""
UNREACHABLE = """task: offline_unreachable
dataset_path: nobody/nothing-here
output_type: multiple_choice
test_split: test
doc_to_text: "x"
doc_to_target: 0
doc_to_choice: ["a", "b"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("harness")
    rng = random.Random(0)
    words = "list value string file object class method number".split()
    rows = []
    for _ in range(24):
        options = [" ".join(rng.choices(words, k=rng.randrange(1, 5))) for _ in range(4)]
        question = f"which {' '.join(rng.choices(words, k=6))}"
        text = " ".join(rng.choices(words, k=40))
        rows.append(
            {"question": question, "options": options, "label": rng.randrange(4), "text": text}
        )
    data = path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fused = path / "fused.jsonl"
    calls = [f"def f{n}(x, y):\n    return g(" for n in range(5)]
    fused.write_text("".join(json.dumps({"call": call}) + "\n" for call in calls))
    texts = {"choice": CHOICE, "generate": GENERATE, "fused": FUSED, "rolling": ROLLING}
    for name, text in texts.items():
        (path / f"{name}.yaml").write_text(text.format(data=data, fused=fused))
    (path / "group.yaml").write_text(GROUP)
    (path / "unreachable.yaml").write_text(UNREACHABLE)
    return path


@pytest.fixture(scope="module")
def catalogue(folder):
    return Catalogue("test", folder, **search(folder))


@pytest.fixture(scope="module")
def lm(pocket_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(pocket_dir, dtype=torch.float32)
    model.eval().requires_grad_(False)
    return LanguageModel(model, AutoTokenizer.from_pretrained(pocket_dir), 1024)


def task(catalogue, name, **options):
    (leaf,) = catalogue.leaves(name)
    return HarnessTask(leaf, name, "other", TaskOptions(**options), "test")


def by_hflm(folder, name, lm):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    found = TaskManager(include_defaults=False, include_path=str(folder)).load([name])
    for built in found["tasks"].values():
        built.set_fewshot_seed(seed=1234)
    return evaluator.evaluate(lm=own, task_dict=found, bootstrap_iters=0)


def test_scores_are_those_of_the_harness_own_model(folder, catalogue, lm):
    ours = task(catalogue, "offline_choice").run(lm, silent)
    theirs = by_hflm(folder, "offline_choice", lm)
    samples = sorted(theirs["samples"]["offline_choice"], key=lambda s: s["doc_id"])
    assert ours.metric == "acc_norm"
    assert ours.scores == [s["acc_norm"] for s in samples]
    assert ours.chance == 0.25
    labels = [sample["doc"]["label"] for sample in samples]
    right = [chosen == label for chosen, label in zip(ours.chosen, labels, strict=True)]
    assert right == [score == 1 for score in ours.scores] and len(set(ours.chosen)) > 1
    for mine, other in zip(ours.samples, samples, strict=True):
        for a, b in zip(mine["said"], other["filtered_resps"], strict=True):
            assert a[0] == pytest.approx(b[0], rel=1e-6, abs=2e-5)
            assert a[1] == b[1]
    assert ours.facts["fewshot"] == 2


def test_choices_that_fuse_with_their_prompt_are_compared_as_whole_texts(catalogue, lm):
    lm.facts.pop("fused_contexts", None)
    found = task(catalogue, "offline_fused").run(lm, silent)
    assert lm.facts.pop("fused_contexts") == 5
    assert [chosen == 0 for chosen in found.chosen] == [score == 1 for score in found.scores]
    for sample in found.samples:
        said = [logprob for logprob, _ in sample["said"]]
        assert all(logprob < 0 for logprob in said)
        for choice, logprob in zip((")", "x)", "x, y)"), said, strict=True):
            # After what all three texts and the prompt itself begin with, token by token.
            context = lm.pairs(sample["prompt"], [")", "x)", "x, y)"])[0].context
            ids = torch.tensor([lm.encode(sample["prompt"] + choice)])
            with torch.inference_mode():
                values = lm.model(ids[:, :-1]).logits[0].log_softmax(-1)
            values = values[len(context) - 1 :].gather(1, ids[0, len(context) :, None])
            assert logprob == pytest.approx(float(values.sum()), abs=1e-4)


def test_generated_texts_are_those_of_the_harness_own_model(folder, catalogue, lm):
    ours = task(catalogue, "offline_generate").run(lm, silent)
    theirs = by_hflm(folder, "offline_generate", lm)
    samples = sorted(theirs["samples"]["offline_generate"], key=lambda s: s["doc_id"])
    assert [s["said"] for s in ours.samples] == [s["filtered_resps"] for s in samples]
    assert ours.metric == "exact_match" and ours.chance == 0.0


def test_rolling_perplexity_is_that_of_the_harness_own_model(folder, catalogue, lm):
    ours = task(catalogue, "offline_rolling").run(lm, silent)
    theirs = by_hflm(folder, "offline_rolling", lm)
    samples = sorted(theirs["samples"]["offline_rolling"], key=lambda s: s["doc_id"])
    assert ours.metric == "nll"
    for score, sample in zip(ours.scores, samples, strict=True):
        assert score == pytest.approx(-sample["filtered_resps"][0], rel=1e-5)
    assert all(weight > 30 for weight in ours.weights)


def test_groups_and_tags_are_taken_apart(catalogue):
    assert [leaf.name for leaf in catalogue.leaves("offline_group")] == [
        "offline_choice",
        "offline_generate",
    ]
    assert catalogue.leaves("offline_group")[1].overrides == (("num_fewshot", "1"),)
    assert [leaf.name for leaf in catalogue.leaves("offline_tag")] == ["offline_generate"]
    assert catalogue.leaves("nothing") == []


def test_what_a_group_changes_reaches_the_task(catalogue, lm):
    leaf = catalogue.leaves("offline_group")[1]
    found = HarnessTask(leaf, "offline_group", "other", TaskOptions(limit=3), "test").run(
        lm, silent
    )
    assert found.facts["fewshot"] == 1
    assert len(found.scores) == 3


def test_limit_and_fewshot_count(catalogue, lm):
    found = task(catalogue, "offline_choice", limit=5, num_fewshot=0).run(lm, silent)
    assert len(found.scores) == 5
    assert found.samples[0]["prompt"].count("Question:") == 1


def test_data_that_cannot_be_had_is_told_in_words(catalogue):
    with pytest.raises(
        TaskUnavailable, match=r"offline_unreachable: its data set is not in the cache"
    ):
        task(catalogue, "offline_unreachable").prepare()


def test_the_installed_harness_knows_the_tasks_that_people_ask_for(tmp_path):
    names = ["mmlu", "ceval", "gsm8k", "ifeval", "arc_challenge", "hellaswag", "winogrande", "bbh"]
    found = find_tasks([*names, "wikitext", "humaneval"], TaskOptions(), tmp_path)
    groups = {}
    for item in found:
        groups.setdefault(item.group, []).append(item.name)
    assert len(groups["mmlu"]) == 57
    assert len(groups["ceval"]) == 52
    assert len(groups["bbh"]) == 27
    assert groups["gsm8k"] == ["gsm8k"]
    capabilities = {item.group: item.capability for item in found}
    assert capabilities["ceval"] == "chinese" and capabilities["bbh"] == "reasoning"
    assert capabilities["humaneval"] == "code"  # ours, in the sandbox
    assert (tmp_path / f"lm_eval-{open_catalogue(tmp_path).version}.json").is_file()


def test_an_unknown_task_names_near_ones(tmp_path):
    with pytest.raises(
        ConfigError, match=r"eval\.tasks: no task 'helaswag'; did you mean 'hellaswag'"
    ):
        find_tasks(["helaswag"], TaskOptions(), tmp_path)


def test_without_the_harness_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(harness_catalogue, "PACKAGE", "lm_eval_missing")
    open_catalogue.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"pip install 'qsweep\[tasks\]'"):
        find_tasks(["mmlu"], TaskOptions(), tmp_path)
    open_catalogue.cache_clear()


def test_unsafe_tasks_of_the_harness_are_refused(tmp_path):
    (unsafe,) = find_tasks(["harness:humaneval"], TaskOptions(), tmp_path)
    assert isinstance(unsafe, HarnessTask)
    with pytest.raises(TaskUnavailable):
        unsafe.prepare()


def test_capabilities_by_the_longest_prefix():
    assert capability_of("mmlu_pro") == "knowledge"
    assert capability_of("arc_easy") == "reasoning"
    assert capability_of("arithmetic_2da") == "math"
    assert capability_of("xyz") == "other"


def test_generation_options_in_our_terms():
    assert Sampling.of_harness({"until": "\n", "max_gen_toks": 9}) == Sampling(9, ("\n",))
    assert Sampling.of_harness({"do_sample": False, "temperature": 0.0}) == Sampling(256)
    drawn = Sampling.of_harness({"do_sample": True, "temperature": 0.8, "top_p": 0.9})
    assert drawn.do_sample and drawn.temperature == 0.8 and drawn.top_p == 0.9


def test_a_chat_template_is_looked_for_before_anything_runs(tmp_path):
    from qsweep.base.errors import QsweepError

    with pytest.raises(QsweepError, match="base has no chat template"):
        require_chat_template(tmp_path, "base")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    require_chat_template(tmp_path, "chat")
