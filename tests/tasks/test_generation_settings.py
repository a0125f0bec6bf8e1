"""Where answers end is the reference's makers' word, of whatever a model was made."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from qsweep.models.facts import read_facts
from qsweep.models.generation_settings import beyond_configuration
from qsweep.sweep.trial import language_model
from qsweep.tasks.batches import end_tokens
from qsweep.tasks.generation import generate
from qsweep.tasks.long.embedded import EmbeddedLong
from qsweep.tasks.requests import Sampling
from qsweep.tasks.revisions import key_revisions
from qsweep.tasks.suite import find_tasks
from qsweep.tasks.task import TaskOptions

LINE = 199
"""The token of a line's end."""


@pytest.fixture
def directory(pocket_dir, tmp_path):
    """The embedded model, whose makers say something else of generating than its configuration."""

    def made(**stated):
        shutil.copytree(pocket_dir, tmp_path / "model", dirs_exist_ok=True)
        (tmp_path / "model/generation_config.json").write_text(json.dumps(stated))
        return tmp_path / "model"

    return made


def models(path):
    """As a reference is loaded, by its directory, and as a quantized artifact is, by its tensors."""
    from transformers import AutoModelForCausalLM

    first = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = type(first).from_pretrained(None, config=first.config, state_dict=state)
    for model in (first, second):
        yield as_asked(path, model.eval())


def as_asked(path, model):
    facts = SimpleNamespace(path=path, max_length=512)
    trial = SimpleNamespace(
        eval=SimpleNamespace(batch_size=1), model=SimpleNamespace(trust_remote_code=False)
    )
    return language_model(SimpleNamespace(trial=trial, setting=SimpleNamespace(facts=facts)), model)


@pytest.mark.parametrize(
    ("stated", "ends"),
    [
        ({"eos_token_id": [0, LINE]}, [0, LINE]),
        ({"eos_token_id": LINE}, [0, LINE]),  # the tokenizer's too
        ({"temperature": 0.6}, [0]),  # then it is the configuration's
        ({}, [0]),
    ],
)
def test_artifact_and_reference_end_at_the_same_tokens(directory, stated, ends):
    assert [end_tokens(lm) for lm in models(directory(**stated))] == [ends, ends]


def test_nothing_else_that_a_file_says_of_generating_is_done(directory):
    """One row at a time, by transformers' own loop."""
    penalized = directory(eos_token_id=0, repetition_penalty=5.0)
    prompt, sampling = list(range(30, 60)), Sampling(24)
    said = [generate(lm, [prompt], sampling, lambda _: None) for lm in models(penalized)]
    (plain, _) = models(directory(eos_token_id=0))
    assert said == [generate(plain, [prompt], sampling, lambda _: None)] * 2


def test_what_a_file_says_beside_the_configuration_is_in_keys_of_what_generates(directory):
    same = {"eos_token_id": [0], "temperature": 0.6, "repetition_penalty": 1.0, "num_beams": 1}
    other = {"eos_token_id": [LINE, 0], "repetition_penalty": 1.1}
    assert beyond_configuration(directory(**same)) == {}
    said = {"ends": [0, LINE], "without": ["repetition_penalty"]}
    assert beyond_configuration(directory(**other)) == said
    assert beyond_configuration(directory(no_repeat_ngram_size=3))["ends"] == []
    (path := directory(**other) / "generation_config.json").unlink()
    assert beyond_configuration(path.parent) == {}


def test_choices_are_scored_whatever_ends_a_text(directory, tmp_path):
    names = ["long_totals", "humaneval", "instructions", "code_cloze"]
    tasks = {task.name: task for task in find_tasks(names, TaskOptions(), tmp_path)}
    facts = read_facts(directory(eos_token_id=[0, LINE]), "m")
    stated = beyond_configuration(facts.path)
    told = {
        name
        for name, task in tasks.items()
        if "generation" in key_revisions(task, facts, generation=stated)
    }
    assert told == {"long_totals", "humaneval", "instructions"}
    assert isinstance(tasks["long_totals"], EmbeddedLong)
    plain = read_facts(directory(eos_token_id=0), "m")
    stated = beyond_configuration(plain.path)
    assert not any(
        "generation" in key_revisions(task, plain, generation=stated) for task in tasks.values()
    )
