"""A report for one card: what is left of a sweep, and what is said of the rest."""

import pytest

from helpers.records import reference, trial
from helpers.typed import typed
from qsweep.commands.report import main
from qsweep.formats.hardware import CARDS
from qsweep.results.card import model_card
from qsweep.results.columns.table import NATIVE_ON
from qsweep.results.html.data import SweepData
from qsweep.results.on_card import on_card
from qsweep.results.record import Row


def made(name, method="rtn", holder="compressed-tensors", size_gb=1.0):
    record = trial(f"{method} {name}", method, 1.02, bits=4, size_gb=size_gb)
    record["options"] |= {} if name == "int" else {"format": name}
    record["artifact"] |= {"format": holder, "runtimes": ["vllm", "transformers"]}
    return record


def names(sweep):
    return [record.name.removeprefix("pocket rtn ") for record in sweep.records]


def sweep(*records):
    return SweepData("demo", "", [typed(record) for record in (reference(), *records)])


def test_what_has_no_kernel_on_a_card_is_left_out_with_the_reason():
    found = on_card(sweep(made("w8a8"), made("nvfp4"), made("w4afp8")), CARDS["b200"])
    assert names(found) == ["pocket none", "nvfp4"]
    assert found.problems == [
        "1 trial is left out on b200 (Blackwell): w8a8 needs Turing to Hopper",
        "1 trial is left out on b200 (Blackwell): w4afp8 needs Hopper only",
    ]


def test_what_is_unpacked_there_is_said():
    found = on_card(sweep(made("nvfp4"), made("int")), CARDS["rtx3090"])
    assert len(found.records) == 3
    (line,) = found.problems
    assert line.startswith("on rtx3090 (Ampere): nvfp4 needs Blackwell")
    assert "activations stay in 16 bits" in line


def test_what_a_cards_memory_cannot_hold_is_left_out():
    found = on_card(sweep(made("int", size_gb=30.0), made("int")), CARDS["l4"])
    assert found.problems == ["1 trial is left out on l4 (Ada): larger than its 24 GB"]


@pytest.mark.parametrize(
    ("record", "native"),
    [
        (made("nvfp4"), "Blackwell"),
        (made("int", holder="gptq"), "any"),
        (made("nvfp4", holder="gguf"), "any"),
        (made("int", "existing", "modelopt"), None),
        (reference(), None),
    ],
)
def test_each_record_tells_its_generation(record, native):
    assert NATIVE_ON.get(Row(typed(record))) == native


def test_the_card_of_an_export_says_where_it_runs():
    page = model_card(typed(made("fp8_dynamic")), {}, [], "x")
    assert "fp8\\_dynamic: multiplied as it is on Ada or later" in page.replace("fp8_", "fp8\\_")
    assert "activations stay in 16 bits" in page
    assert "multiplied as it is" not in model_card(typed(made("int")), {}, [], "x")


def test_an_unknown_card_is_one_line(capsys):
    assert main(["--hardware", "h10"]) == 2
    said = capsys.readouterr().err
    assert "--hardware=h10: no such card; did you mean" in said and said.count("\n") == 1
