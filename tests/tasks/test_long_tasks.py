"""Long answers asked of small models: what is kept, what is refused, and the harness's tasks."""

import json
from dataclasses import replace

import pytest
import torch

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.models.generation_settings import generation_settings
from qsweep.sweep.config import EvalConfig
from qsweep.tasks.capabilities import compare_task
from qsweep.tasks.long.asking import DEFAULTS, settings
from qsweep.tasks.long.embedded import NAMES, EmbeddedLong
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.run import TaskPlan, missing, run_tasks, task_records
from qsweep.tasks.suite import find_tasks
from qsweep.tasks.task import TaskOptions, TaskUnavailable, read_result, save_result

FEW = TaskOptions(limit=3, samples=2, steps=2, num_fewshot=1, max_new_tokens=48)
ROOMY = replace(FEW, max_new_tokens=None)


def load(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval().requires_grad_(False)
    return LanguageModel(model, AutoTokenizer.from_pretrained(path), 1024)


@pytest.fixture(scope="module")
def lm(pocket_dir):
    return load(pocket_dir)


def of_two_bits(lm):
    """The same model with weights on four levels, in groups of 64."""
    from copy import deepcopy

    model = deepcopy(lm.model)
    for name, weight in model.named_parameters():
        if "proj" in name:
            groups = weight.reshape(-1, 64)
            step = groups.abs().amax(1, keepdim=True) / 1.5
            codes = ((groups / step - 0.5).round().clamp(-2, 1) + 0.5) * step
            weight.copy_(codes.reshape(weight.shape))
    return LanguageModel(model, lm.tokenizer, lm.max_length)


@pytest.fixture(scope="module")
def results(lm):
    other = of_two_bits(lm)
    return {
        name: [EmbeddedLong(name, FEW).run(model, silent) for model in (lm, other)]
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_has_a_greedy_answer_and_samples(results, name):
    result, _ = results[name]
    assert len(result.scores) == len(result.ids) == len(result.long.greedy) == 3
    assert [len(of) for of in result.long.lengths] == [2] * 3
    most = result.facts["max_new_tokens"]
    for lengths, truncated in zip(result.long.lengths, result.long.truncated, strict=True):
        assert all(1 <= length <= most for length in lengths)
        assert all(length > most / 2 for length, cut in zip(lengths, truncated, strict=True) if cut)
    assert result.samples[0]["said"][0] != result.samples[0]["said"][1]
    assert result.facts["sampling"] == DEFAULTS


def test_a_result_is_read_as_it_was_saved(results, tmp_path):
    result, _ = results["long_lists"]
    save_result(result, tmp_path)
    found = read_result(tmp_path)
    assert replace(found, samples=result.samples) == result
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["said"]) == 2


def test_the_reference_beside_itself_never_departs(results):
    for result, _ in results.values():
        long = compare_task([(result, result)]).summary["long"]
        assert long["length_ratio"] == long["length_ratio_low"] == long["length_ratio_high"] == 1.0
        assert long["departed"] == 0 and long["divergence_token"] is None
        assert long["longest"] == max(map(len, result.long.greedy))


def test_two_bits_depart_early(results):
    for result, other in results.values():
        long = compare_task([(other, result)]).summary["long"]
        assert long["departed"] == 1 and long["divergence_token"] <= 3
        said, base_said = ([one["said"] for one in of.samples] for of in (other, result))
        assert all(own != base for own, base in zip(said, base_said, strict=True))
        tokens, base = (sum(map(sum, of.long.lengths)) for of in (other, result))
        assert long["length_ratio"] == pytest.approx(tokens / base)


def test_the_same_again_is_the_same(results, lm):
    again = EmbeddedLong("long_lists", FEW).run(
        LanguageModel(lm.model, lm.tokenizer, 1024, 3), silent
    )
    assert again.long == results["long_lists"][0].long


def test_what_is_asked_beside_it_changes_no_sample(results, lm):
    fewer = EmbeddedLong("long_lists", replace(FEW, limit=2, samples=1)).run(lm, silent)
    whole = results["long_lists"][0].long
    assert fewer.long.greedy == whole.greedy[:2]
    assert [of[:1] for of in whole.lengths[:2]] == fewer.long.lengths


def test_right_words_get_a_full_score(results, lm, monkeypatch):
    from qsweep.tasks.long import asking

    task = EmbeddedLong("long_totals", FEW)
    texts = [[problem.answer, problem.lines[0]] for problem in task._problems(2)]
    said = asking.Said(results["long_totals"][0].long, [of[0] for of in texts], texts)
    monkeypatch.setattr(asking, "ask", lambda *_: said)
    found = task.run(lm, silent)
    assert found.scores == [0.75] * 3
    assert found.facts["solved"] == 0.5 and found.facts["greedy_score"] == 1


def test_thoughts_that_the_template_opens_are_no_answer(results, lm, monkeypatch):
    from copy import deepcopy

    from qsweep.tasks.long import asking

    task = EmbeddedLong("long_totals", replace(FEW, chat_template=True))
    answers = [problem.answer for problem in task._problems(2)]
    texts = [[f"{answer}\n</think>\n{answer}", answer] for answer in answers]
    said = asking.Said(results["long_totals"][0].long, [of[0] for of in texts], texts)
    monkeypatch.setattr(asking, "ask", lambda *_: said)
    tokenizer = deepcopy(lm.tokenizer)
    for opening, score in (("", 1.0), ("<think>\n", 0.5)):
        tokenizer.chat_template = "{{ messages[0].content }}\nAssistant:\n" + opening
        found = task.run(LanguageModel(lm.model, tokenizer, 1024), silent)
        assert found.scores == [score] * 3 and found.facts["greedy_score"] == 1


# How a model is sampled.


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({}, DEFAULTS),
        ({"eos_token_id": 0, "do_sample": True}, DEFAULTS),
        ({"temperature": 0.7}, {"temperature": 0.7, "top_p": 1.0, "top_k": 0}),
        ({"top_k": 20, "top_p": 0.8}, {"temperature": 1.0, "top_p": 0.8, "top_k": 20}),
        ({"temperature": 0, "top_p": 2, "top_k": -1}, DEFAULTS),
        ({"temperature": "hot", "top_k": True}, DEFAULTS),
        ({"top_k": 20.0}, {"temperature": 1.0, "top_p": 1.0, "top_k": 20}),
        ({"top_k": float("inf")}, DEFAULTS),
        ({"temperature": float("inf")}, DEFAULTS),
        ({"temperature": 0.0, "top_p": 1.0}, {"temperature": 0.6, "top_p": 1.0, "top_k": 0}),
        ({"temperature": float("inf"), "top_k": 5}, {"temperature": 0.6, "top_p": 1.0, "top_k": 5}),
        ({"temperature": None, "top_k": 5}, {"temperature": 1.0, "top_p": 1.0, "top_k": 5}),
    ],
)
def test_a_model_says_itself_how_it_is_sampled(stated, found, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    assert settings(generation_settings(tmp_path)) == found


def test_without_a_file_a_model_says_nothing(tmp_path):
    assert generation_settings(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text("[1]")
    assert generation_settings(tmp_path) == {}


def test_what_determines_samples_is_in_the_key():
    base = EmbeddedLong("long_totals", FEW).identity()
    for more in (
        {"samples": 3}, {"steps": 3}, {"max_new_tokens": 99}, {"sampling": {"temperature": 0.9}},
        {"limit": 5}, {"num_fewshot": 2}, {"chat_template": True},
    ):  # fmt: skip
        assert EmbeddedLong("long_totals", replace(FEW, **more)).identity() != base, more
    assert EmbeddedLong("long_totals", replace(FEW, unsafe_code=True)).identity() == base


# What is refused, in one line each, and that the way out is one.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"samples": 0}, "eval.samples=0: must be at least 1"),
        ({"steps": 0}, "eval.steps=0: must be at least 1"),
        ({"max_new_tokens": -5}, "eval.max_new_tokens=-5: must be at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ConfigError) as error:
        EvalConfig(**values)
    assert str(error.value) == said


def test_too_few_new_tokens_name_how_many_it_takes(lm):
    with pytest.raises(QsweepError) as error:
        EmbeddedLong("long_totals", replace(FEW, max_new_tokens=9)).run(lm, silent)
    line = str(error.value)
    assert line.startswith("long_totals: eval.max_new_tokens=9: right answers take up to ")
    enough = int(line.rpartition("=")[2].split()[0])
    found = EmbeddedLong("long_totals", replace(FEW, max_new_tokens=enough)).run(lm, silent)
    assert found.facts["max_new_tokens"] == enough
    with pytest.raises(QsweepError):
        EmbeddedLong("long_totals", replace(FEW, max_new_tokens=enough - 1)).run(lm, silent)


def test_a_context_without_room_names_the_steps_that_fit(lm):
    small = LanguageModel(lm.model, lm.tokenizer, 320)
    task = EmbeddedLong("long_lists", replace(ROOMY, steps=40))
    with pytest.raises(QsweepError, match="a problem of 40 steps and its answer take") as error:
        task.run(small, silent)
    line = str(error.value)
    assert "\n" not in line and "the model's context has 320; set eval.steps=" in line
    steps = int(line.rpartition("eval.steps=")[2].split()[0])
    found = EmbeddedLong("long_lists", replace(ROOMY, steps=steps)).run(small, silent)
    assert found.facts["steps"] == steps < 40
    with pytest.raises(QsweepError, match=f"set eval.steps={steps} or fewer"):
        EmbeddedLong("long_lists", replace(ROOMY, steps=steps + 1)).run(small, silent)


def test_a_context_for_nothing_advises_nothing(lm):
    tiny = LanguageModel(lm.model, lm.tokenizer, 24)
    with pytest.raises(QsweepError, match=r"the model's context has 24$"):
        EmbeddedLong("long_totals", ROOMY).run(tiny, silent)


def test_problems_of_a_task_may_be_answered_together(lm):
    for name in NAMES:
        task = EmbeddedLong(name, replace(ROOMY, limit=None, steps=4))
        asked = task._problems(4)
        (limit,) = {ask.new for ask in task._asks(asked, lm)}
        assert limit == 2 * max(task._needed(problem, lm) for problem in asked) + 64


def test_a_context_that_is_nearly_full_gives_shorter_answers(lm):
    task = EmbeddedLong("long_totals", ROOMY)
    asks = task._asks(task._problems(2), lm)
    longest = max(len(ask.prompt) for ask in asks)
    tight = LanguageModel(lm.model, lm.tokenizer, longest + 60)
    assert max(len(a.prompt) + a.new for a in task._asks(task._problems(2), tight)) == longest + 60
    assert tight.facts["fewer_new_tokens"] > 0


def test_more_examples_than_there_are_fail_the_task_alone():
    with pytest.raises(TaskUnavailable, match="99 solved examples are asked for, it has 8"):
        EmbeddedLong("long_totals", replace(FEW, num_fewshot=99)).prepare()


# In the store.


def plans(artifact):
    task = EmbeddedLong("long_lists", FEW)
    identity = task.identity()
    return [TaskPlan(task, {"artifact": artifact, **identity}, {"artifact": "none", **identity})]


def test_nothing_is_generated_twice(tmp_path, lm):
    store = Store(tmp_path)
    run_tasks(plans("none"), store, lambda: lm, silent)
    run_tasks(plans("rtn"), store, lambda: of_two_bits(lm), silent)
    run_tasks([*plans("none"), *plans("rtn")], store, lambda: pytest.fail("loaded"), silent)
    assert not missing(plans("rtn"), store)
    found = task_records(plans("rtn"), store, {})
    assert found["long"] == found["tasks"][0]["long"]  # one task
    assert found["long"]["departed"] == 1
    assert task_records(plans("none"), store, {})["long"]["departed"] == 0


# Names, and the harness.


def test_names_of_long_tasks(tmp_path):
    names = [task.name for task in find_tasks(["long"], TaskOptions(), tmp_path)]
    assert names == ["long_totals", "long_lists"]


def test_tasks_of_the_harness_by_their_names(tmp_path):
    pytest.importorskip("lm_eval")
    found = find_tasks(
        ["long_gsm8k", "long_minerva_math500", "long_aime24"], TaskOptions(), tmp_path
    )
    assert [task.group for task in found] == ["long_gsm8k", "long_minerva_math500", "long_aime24"]
    assert all(task.capability == "long answers" for task in found)
    with pytest.raises(ConfigError, match="no task 'long_nothing'"):
        find_tasks(["long_nothing"], TaskOptions(), tmp_path)
    with pytest.raises(TaskUnavailable, match="gsm8k: its data set is not in the cache"):
        found[0].prepare()


COUNT = """task: offline_count
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
"""


def harness_task(folder, options, kind="generate_until"):
    from qsweep.tasks.harness import HarnessTask
    from qsweep.tasks.harness_catalogue import Catalogue, search
    from qsweep.tasks.long.harness import HarnessLong

    chosen = kind == "multiple_choice"
    rows = [
        {"question": f"{n} + 1 =", "answer": f"{n + 1}" if not chosen else "a"} for n in range(6)
    ]
    data = folder / "count.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = "acc" if chosen else "exact_match"
    more = (
        'doc_to_choice: ["a", "b"]'
        if chosen
        else 'generation_kwargs: {until: ["\\n"], max_gen_toks: 12}'
    )
    (folder / "count.yaml").write_text(COUNT.format(data=data, kind=kind, metric=metric, more=more))
    (leaf,) = Catalogue("test", folder, **search(folder)).leaves("offline_count")
    return HarnessLong(HarnessTask(leaf, "offline_count", "math", options, "test"))


def test_a_task_of_the_harness_is_sampled_and_scored_by_it(tmp_path, lm):
    pytest.importorskip("lm_eval")
    task = harness_task(tmp_path, TaskOptions(samples=3, sampling={"temperature": 1.5}))
    task.prepare()
    found = task.run(lm, silent)
    assert found.metric == "exact_match" and len(found.scores) == 6
    assert [len(of) for of in found.long.lengths] == [3] * 6
    for sample, score in zip(found.samples, found.scores, strict=True):
        assert len(sample["score"]) == 3 and score == pytest.approx(sum(sample["score"]) / 3)
        right = [said[0].strip() == sample["answer"] for said in sample["said"]]
        assert [bool(s) for s in sample["score"]] == right
    assert any(len({str(s) for s in sample["said"]}) > 1 for sample in found.samples)
    assert found.facts["sampling"]["temperature"] == 1.5 and found.facts["max_new_tokens"] == 12
    # Greedy answers are those of the task asked as ever.
    plain = task.of.run(lm, silent)
    assert found.facts["greedy_score"] == sum(plain.scores) / 6
    assert [s["greedy"] for s in found.samples] == [s["said"] for s in plain.samples]


def test_a_task_of_choices_says_to_be_asked_as_one(tmp_path, lm):
    pytest.importorskip("lm_eval")
    task = harness_task(tmp_path, TaskOptions(), "multiple_choice")
    said = "offline_count is no task of generated answers .*; name it without long_"
    with pytest.raises(TaskUnavailable, match=said):
        task.prepare()
    assert len(task.of.run(lm, silent).scores) == 6  # which is taken
