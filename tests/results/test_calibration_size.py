"""The panel of how much text was calibrated on."""

from helpers.records import reference, trial
from helpers.typed import typed
from qsweep.results.html import across
from qsweep.results.html.calibration_size import calibration_size
from qsweep.results.html.data import groups
from qsweep.results.html.vega import svg


def made(name, samples, kld, *, length=512, seed=0, bits=3, **config):
    key = f"{name}-{samples}-{length}-{seed}-{bits}"
    record = trial(f"{name} {bits}-bit", name, 1.0 + kld, bits=bits, key=key, calibration="python")
    record["calibration_tokens"] = {"asked": samples * length, "distinct": samples * length}
    sampling = {"num_samples": samples, "max_seq_len": length, "seed": seed}
    record["config"] = {"calibration": {"source": "python", **sampling}, **config}
    record["measurements"][0]["metrics"] |= {"kld": kld, "kld_stderr": kld / 20}
    return record


def panel(*records):
    (group,) = groups(typed([reference(), *records]))
    return calibration_size(group)


def curve(name, klds, **more):
    return [made(name, samples, kld, **more) for samples, kld in klds.items()]


def test_a_sweep_of_one_size_has_no_panel():
    assert panel(made("gptq", 8, 0.1), made("awq", 8, 0.12)) is None
    assert panel(made("gptq", 8, 0.1), made("gptq", 32, 0.05, bits=4)) is None


def test_a_line_is_one_setting_at_several_sizes():
    found = panel(*curve("gptq", {2: 0.3, 8: 0.2}), *curve("awq", {2: 0.25, 8: 0.21}))
    assert "gptq 3-bit: 1024 tokens 0.3000, 4096 tokens 0.2000" in found.alt
    points = found.spec["data"]["values"]
    assert {point["line"] for point in points} == {"gptq 3-bit", "awq 3-bit"}
    assert all(point["low"] < point["kld"] < point["high"] for point in points)
    assert svg(found.spec).startswith("<svg")


def test_lengths_are_told_apart_and_draws_are_averaged():
    found = panel(
        *curve("gptq", {2: 0.3, 8: 0.2}),
        *curve("gptq", {8: 0.3, 32: 0.22}, length=128),
        *curve("gptq", {2: 0.2, 8: 0.1}, seed=1),
    )
    assert {p["length"] for p in found.spec["data"]["values"]} == {
        "samples of 128", "samples of 512",
    }  # fmt: skip
    assert "mean of several draws" in found.note
    assert len({p["line"] for p in found.spec["data"]["values"]}) == 1
    assert "strokeDash" in svg(found.spec) or "dasharray" in svg(found.spec)


def test_settings_of_one_name_are_told_apart_by_what_they_differ_in():
    other = {"quant": {"damp_percent": 0.1}}
    first, second = (curve("gptq", {2: 0.3, 8: 0.2}) for _ in range(2))
    for record in second:
        record["key"] += "-damped"
        record["options"] |= {"damp_percent": 0.1}
        record["config"] |= other
    lines = {p["line"] for p in panel(*first, *second).spec["data"]["values"]}
    assert len(lines) == 2 and any("damp_percent=0.1" in line for line in lines)


def test_draws_of_one_text_all_count_where_texts_are_compared():
    records = []
    for text, worse in (("docs", 0.0), ("code", 0.1)):
        for seed in (0, 1):
            record = made("gptq", 8, 0.1 + worse + seed / 10, seed=seed)
            records.append(record | {"calibration": text, "key": f"{text}-{seed}"})
    (group,) = groups(typed([reference(), *records]))
    found = across.calibration(group)
    assert found.note.startswith("Geometric mean over 2 settings and the range over them")
    assert "docs on python_docs 1.149 (1.100-1.200)" in found.alt


def test_of_many_settings_some_are_drawn_and_it_says_so():
    many = [r for n in range(12) for r in curve("gptq", {2: 0.3, 8: 0.2}, bits=n)]
    found = panel(*many)
    assert "8 of 12 settings are drawn" in found.note
