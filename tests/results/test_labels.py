"""Whatever differs between rows of a table is in their labels, and nothing that must not be."""

import pytest

from helpers.records import reference, shown, trial
from helpers.typed import on_disk
from qsweep.results.html.data import groups
from qsweep.results.labels import distinguish, with_distinct_names
from qsweep.results.markdown import results_markdown
from qsweep.tracking.mlflow.runs import trial_run

with_distinct_names, results_markdown, groups, trial_run = map(
    on_disk, (with_distinct_names, results_markdown, groups, trial_run)
)

BASE = {
    "model": {"name": "pocket", "path": "/m", "revision": "main", "dtype": "auto"},
    "calibration": {"name": "python", "source": "python", "split": "calibration",
                    "num_samples": 32, "max_seq_len": 512, "seed": 0},
    "corpus": {"python_docs": {"source": "python", "kind": "docs", "max_bytes": None}},
    "eval": {"presets": ["paper"], "max_windows": None, "dtype": "auto", "tasks": []},
    "quant": {"_target_": "x", "bits": 3, "damp_percent": 0.05},
    "device": "auto", "bits": 3, "seed": 0, "sweep": None, "outputs_dir": "o",
    "tracking": {"uri": "http://user:hunter2@host", "enabled": True},
}  # fmt: skip


def configured(changes, key, **more):
    """A trial whose configuration differs from the others' by dotted names."""
    config = {name: dict(v) if isinstance(v, dict) else v for name, v in BASE.items()}
    for name, value in changes.items():
        group, _, option = name.partition(".")
        if option:
            config[group][option] = value
        else:
            config[group] = value
    own = {"config": config, "key": key, "calibration": config["calibration"]["name"]}
    return trial("gptq 3-bit", "gptq", 1.05, bits=3) | own | more


def labels(*changes):
    made = [configured(change, f"key{number}") for number, change in enumerate(changes)]
    return [record.name.removeprefix("pocket gptq 3-bit") for record in with_distinct_names(made)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"calibration.seed": 0}, {"calibration.seed": 1}], [" seed=0", " seed=1"]),
        ([{"calibration.num_samples": 8}, {}], [" num_samples=8", " num_samples=32"]),
        ([{"calibration.max_seq_len": 64}, {}], [" max_seq_len=64", " max_seq_len=512"]),
        ([{"eval.max_windows": 8}, {}], [" max_windows=8", ""]),
        ([{"eval.presets": ["llamacpp"]}, {}], [" presets=llamacpp", " presets=paper"]),
        ([{"model.revision": "v2"}, {}], [" revision=v2", " revision=main"]),
        ([{"model.stream": True}, {"model.stream": "auto"}], [" #key0", " #key1"]),
        ([{"device": "cpu"}, {}], [" device=cpu", " device=auto"]),
        (
            [{"corpus.python_docs": BASE["corpus"]["python_docs"] | {"max_bytes": 9}}, {}],
            [" max_bytes=9", ""],
        ),
        ([{"eval.new": True}, {}], [" new=true", ""]),
        # a calibration's name stands for its text, and for nothing else
        (
            [{"calibration.name": "c4", "calibration.source": "datasets"}, {}],
            [" c4", " python"],
        ),
        (
            [{"calibration.name": "c4", "calibration.seed": 7}, {}],
            [" c4 seed=7", " python seed=0"],
        ),
        # texts of one name, from two files
        (
            [{"calibration.path": "/a/x/text.txt"}, {"calibration.path": "/a/y/text.txt"}],
            [" path=x/text.txt", " path=y/text.txt"],
        ),
        # both have a dtype: which one is said
        (
            [{"eval.dtype": "float32", "model.dtype": "float16"}, {}],
            [" model.dtype=float16 eval.dtype=float32", " model.dtype=auto eval.dtype=auto"],
        ),
    ],
)
def test_what_differs_is_in_the_label(changes, expected):
    assert labels(*changes) == expected


def test_rows_of_several_methods_say_what_they_do_not_share():
    gptq = configured({"calibration.seed": 0}, "gptq")
    awq = configured({"calibration.seed": 1}, "awq", name="pocket awq 3-bit", method="awq")
    rtn = configured({"calibration.seed": 2}, "rtn", name="pocket rtn 3-bit", calibration=None)
    names = [record.name for record in with_distinct_names([gptq, awq, rtn])]
    assert names == ["pocket gptq 3-bit seed=0", "pocket awq 3-bit seed=1", "pocket rtn 3-bit"]


def test_what_ran_for_another_purpose_says_so_and_puts_nothing_into_the_others_names():
    own = configured({"eval.tasks": ["embedded"]}, "a")
    check = configured({"eval.tasks": []}, "b", implied=True, method="rtn")
    few = configured({"eval.max_windows": 8}, "c", fidelity="few")
    names = [
        r.name.removeprefix("pocket gptq 3-bit") for r in with_distinct_names([own, check, few])
    ]
    assert names == ["", " (check)", " (first windows)"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["ratio ±5 %", "kld ±0.1"], [" until=ratio ±5 %", " until=kld ±0.1"]),
        (["ratio ±5 %", None], [" until=ratio ±5 %", ""]),
        (["ratio ±5 %"], [""]),
    ],
)
def test_the_reference_reads_all_windows_whatever_others_stop_by(rules, expected):
    base = configured(
        {"eval.until": rules[0]}, "r", reference=True, method="none", name="pocket none"
    )
    own = [configured({"eval.until": rule}, str(n)) for n, rule in enumerate(rules)]
    first, *names = [record.name for record in with_distinct_names([base, *own])]
    assert first == "pocket none"
    assert [name.removeprefix("pocket gptq 3-bit") for name in names] == expected


def test_every_difference_is_told_and_not_just_enough_of_them():
    found = labels({"calibration.seed": 1, "eval.max_windows": 8}, {"calibration.seed": 2})
    assert found == [" seed=1 max_windows=8", " seed=2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tracking": {"uri": "http://user:hunter3@host"}},
        {"outputs_dir": "p"},
        {"bits": 4},
        {"sweep": "hunter2"},
        {"seed": 3},
        {"quant": {"_target_": "x", "bits": 3, "ignored": "hunter2"}},
    ],
)
def test_what_makes_no_figure_is_no_label_and_the_key_is_the_last_resort(changes):
    first, second = labels(changes, {})
    assert (first, second) == (" #key0", " #key1")


def test_an_address_is_shown_without_what_may_be_secret_in_it():
    first, second = labels(
        {"eval.source": "https://me:hunter2@host/a/text?token=hunter2"},
        {"eval.source": "https://token@host/b/text?sig=hunter2"},
    )
    assert (first, second) == (" source=a/text", " source=b/text")


def test_a_long_difference_is_cut_and_rows_stay_apart():
    first, second = labels({"eval.tasks": ["task"] * 40 + ["a"]}, {"eval.tasks": ["task"] * 40})
    assert first != second and len(first) < 80


def test_what_a_quantizer_does_not_see_is_not_told():
    made = [
        trial("rtn 3-bit", "rtn", 1.1, bits=3) | {"key": str(seed), "calibration": None}
        for seed in range(2)
    ]
    for seed, record in enumerate(made):
        record["config"] = {"calibration": {"name": "python", "seed": seed}}
    assert [r.name for r in with_distinct_names(made)] == [
        "pocket rtn 3-bit #0",
        "pocket rtn 3-bit #1",
    ]


def test_every_output_calls_a_row_alike():
    made = [configured({"calibration.seed": seed}, f"key{seed}") for seed in range(2)]
    for record in made:
        record["measurements"][0]["facts"] |= {"windows": 40, "fingerprint": "f"}
    records = [reference(), *made]
    texts = [shown(records, 120, terminal=False), results_markdown("s", records)]
    (group,) = groups(made)
    texts.append(" ".join(row.label for row in group.rows))
    texts.append(trial_run(with_distinct_names(made)[0]).name)
    assert all("seed=0" in text for text in texts)


def test_labels_of_anything_by_traits_of_ones_own():
    found = distinguish({"a": "x", "b": "x"}, {"a": {"n": 1}, "b": {"n": 2}}, lambda r: r)
    assert found == {"a": "x n=1", "b": "x n=2"}
