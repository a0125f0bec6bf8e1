"""The report's page: what it says, what it draws, and what it must never do."""

import json
import math
import re

import pytest

from helpers.browser import CHROMIUM, dom_of
from helpers.synthetic import reference, synthetic
from helpers.typed import on_disk, typed
from qsweep.base.errors import QsweepError
from qsweep.base.files import write_json
from qsweep.commands.report import main
from qsweep.results.front import pareto_front
from qsweep.results.html import report_sweep, write_report
from qsweep.results.html.answer import answers
from qsweep.results.html.data import SweepData, groups, merge, why_not_comparable
from qsweep.results.html.overview import quality_against_size
from qsweep.results.html.packing import columns, packed
from qsweep.results.html.page import in_script, render
from qsweep.results.html.panel import ratio_domain, ticks
from qsweep.results.html.theme import LIGHT
from qsweep.results.html.tokens import divergence_by_token
from qsweep.results.record_file import without_damage
from qsweep.results.sources import sweeps_in

report_sweep, write_report, groups, merge, render = map(
    on_disk, (report_sweep, write_report, groups, merge, render)
)


def sweep(count=60, name="demo", **more):
    return SweepData(name, "python -m qsweep -m quant=gptq", synthetic(count, **more))


def one_group(records):
    (group,) = groups(records)
    return group


def headings(page):
    return re.findall(r"<h3>(.*?)</h3>", page)


def stored(outputs, name, records):
    directory = outputs / "sweeps" / name
    for number, record in enumerate(records):
        write_json(directory / "trials" / f"{number}.json", record)
    write_json(
        directory / "sweep.json", {"name": name, "command": "python -m qsweep", "started": ""}
    )
    return directory


def test_the_front_holds_what_nothing_beats_in_both():
    rows = [
        {"size_gb": size, "ppl_ratio": ratio}
        for size, ratio in ((4, 1.2), (5, 1.1), (5, 1.3), (6, 1.1), (7, 1.05), (8, float("nan")))
    ]

    def point(row):
        found = (row["size_gb"], row["ppl_ratio"])
        return None if math.isnan(found[1]) else found

    front = pareto_front(rows, point)
    assert [(r["size_gb"], r["ppl_ratio"]) for r in front] == [(4, 1.2), (5, 1.1), (7, 1.05)]


def test_the_answer_counts_only_what_a_serving_runtime_loads():
    records = synthetic(12)
    best = {s.question: s.answer for s in answers(one_group(records))}["Best quality per GB"]
    for record in records[1:]:
        record["artifact"] and record["artifact"].update(runtimes=["gptqmodel"])
    said = {s.question: s.answer for s in answers(one_group(records))}
    assert "perplexity ratio 1.0" in best and "% of the reference's size" in best
    assert said["Best quality per GB"] == "no artifact here is one that a runtime serves"
    assert said["Smallest acceptable"].startswith("none:")


def test_what_suffers_most_is_a_capability_where_tasks_ran_else_a_corpus():
    records = synthetic(12)
    assert "math: " in answers(one_group(records))[-1].answer
    for record in records:
        record.pop("capabilities", None)
    assert answers(one_group(records))[-1].answer.startswith("python_code: ratio 1.0")


def test_trials_of_one_name_are_told_apart_by_what_they_differ_in():
    rows = one_group(synthetic(200)).primary_rows
    labels = [row.label for row in rows]
    assert len(set(labels)) == len(labels)
    assert "gptq 4-bit g128 c4" in labels


def test_every_panel_appears_where_the_sweep_varied_it_and_nowhere_else():
    full = headings(render([sweep(400)]))
    small = headings(render([SweepData("s", "", [*synthetic(2)])]))
    varied = {"Bits", "Group size", "Order of columns (desc_act)", "Calibration × corpus"}
    assert varied <= set(full) and not varied & set(small)
    assert {"Quality against size", "All trials", "Capabilities", "Loss by layer"} <= set(full)


def test_sweeps_on_other_tokens_or_protocols_are_told_apart_and_not_drawn_together():
    other = synthetic(8, model="qwen-8b")
    older = synthetic(8, model="llama-8b", seed=1)
    for number, record in enumerate(older):
        record["key"] = f"older-{number}"
        for measurement in record["measurements"]:
            measurement["facts"]["protocol"] = 0
    sweeps = [sweep(20), SweepData("other", "", other), SweepData("older", "", older)]
    found = groups(merge(sweeps))
    assert len(found) == 3
    page = render(sweeps)
    assert "Not comparable" in page and "the tokenizer or the text differs" in page
    assert "protocol 1 against 0" in page
    assert "measured by protocol 0" in page
    assert page.count('id="p1-size"') == page.count('id="p3-size"') == 1
    assert "Architectures" in headings(page)
    assert why_not_comparable(found[0], found[1])


def test_sweeps_that_share_trials_hold_each_once_and_name_both_sweeps():
    records = merge([sweep(5, "a"), sweep(5, "b")])
    assert len(records) == 5
    assert {record.sweep for record in records} == {"a, b"}


@pytest.mark.parametrize("records", [[], [synthetic(60)[14]]], ids=["empty", "only failures"])
def test_a_sweep_without_figures_gets_a_page_that_says_so(records):
    page = render([SweepData("nothing", "", records)])
    said = "is empty" if not records else "Nothing was measured"
    assert said in page
    assert "vegaEmbed=" not in page


HOSTILE = "<script>alert(1)</script>"
OWN = "document.body.id='owned'"


def hostile():
    records = synthetic(15)
    for record in records:
        record["model"] = HOSTILE
        record["name"] = record["name"].replace("llama-8b", HOSTILE)
        record["command"] = f"{HOSTILE}</script><img src=x onerror={OWN}>"
        record["calibration"] = '"><svg onload=alert(3)>'
        record["reason"] = "</script><script>document.body.id='owned'</script>\u2028{{7*7}}"
        record["environment"]["cpu"] = HOSTILE
        record["options"]["x"] = HOSTILE
        for measurement in record["measurements"]:
            measurement["corpus"] = "--><script>alert(5)</script>" + measurement["corpus"]
    return [SweepData(HOSTILE, records[0]["command"], records)]


def test_no_text_of_a_user_becomes_markup_or_script():
    page = render(hostile())
    trusted = re.compile(r"<script>.*?</script>", re.DOTALL)
    assert len(trusted.findall(page)) == 2
    page = trusted.sub("<script></script>", page)
    assert "alert(1)" in page
    assert "<script>alert" not in page and "<img" not in page and "<svg onload" not in page
    scripts = re.findall(r"<script[^>]*>", page)
    data = [f'<script type="application/json" id="{name}">' for name in ("config", "charts")]
    assert scripts == ["<script>", *data, "<script>"]


def test_json_in_a_script_cannot_end_it_and_is_still_the_same_json():
    value = {"a": "</script><!-- \u2028 & 'x'"}
    text = in_script(json.dumps(value, ensure_ascii=False))
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == value


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_every_chart_and_runs_no_script_of_a_user(tmp_path):
    page = tmp_path / "page.html"
    write_report(hostile(), page)
    dom = dom_of(page, tmp_path / "profile")
    assert 'data-ready="yes"' in dom
    dom = re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)
    charts = dom.count('class="chart')
    assert charts > 3 and dom.count('class="marks"') == charts
    assert "could not be drawn" not in dom
    assert "<img" not in dom and "<svg onload" not in dom
    assert not re.search(r"<body[^>]*owned", dom)


def test_the_page_names_no_other_place_and_stays_small():
    page = render([sweep(500)])
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=\"(?!#)", body)
    assert len(page.encode()) < 5e6


def test_the_reference_is_drawn_beside_the_speed_of_the_others():
    from qsweep.results.html.costs import speed
    from qsweep.results.html.vega import svg

    records = synthetic(12)
    without = speed(*groups(records))
    assert "Dashed" not in without.note and 'stroke-dasharray="6,4"' not in svg(without.spec)
    records[0]["speed"] = {"decode_tps": 321.0}
    panel = speed(*groups(records))
    assert "Dashed: the reference, 321." in panel.note
    # Far beyond the others' 60 tokens per second, and on the axis all the same.
    picture = svg(panel.spec)
    assert picture.count('stroke-dasharray="6,4"') == 1 and ">300<" in picture


def test_models_of_about_one_size_get_an_axis_of_their_own():
    def panel(count):
        return quality_against_size(*groups(synthetic(count)))

    alike = panel(12)  # 4 bits alone
    assert "does not start at 0: the reference, 16.1 GB, lies to the right" in alike.note
    points = alike.spec["data"]["values"]
    assert len(points) == 11 and not any(p["reference"] for p in points)
    sizes = [p["size"] for p in points]
    low, high = alike.spec["layer"][-2]["encoding"]["x"]["scale"]["domain"]
    assert low < min(sizes) and max(sizes) < high < 6
    spread = panel(200)
    assert "does not start" not in spread.note
    assert any(p["reference"] for p in spread.spec["data"]["values"])
    # One model is no crowd, nor are several of exactly one size: where they lie beside the
    # reference is what the picture shows.
    assert "does not start" not in panel(2).note
    same = synthetic(8)
    for record in same[1:]:
        record["artifact"]["size_gb"] = 5.0
    assert "does not start" not in quality_against_size(*groups(same)).note


def test_sort_buttons_tables_and_regions_are_named_for_who_cannot_see_them():
    page = render([sweep(40)]).partition("<script>")[0]
    head = page[page.index('<table class="trials">') :].partition("</thead>")[0]
    assert "<caption" in head
    headings = re.findall(r"<th [^>]*>.*?</th>", head)
    assert len(headings) > 10
    for heading in headings:
        assert 'scope="col"' in heading and 'aria-sort="none"' in heading
        assert re.search(r'<button type="button" title="[^"]+">[^<]+</button>', heading)
    assert page.count("<table") == page.count("<caption")
    regions = re.findall(r'role="region" aria-label="([^"]*)"', page)
    assert len(regions) == page.count("<table") and "table" not in regions
    pictures = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert len(pictures) > 4 and all(len(text) > 40 for text in pictures)


def test_the_ratio_axis_is_broken_only_where_it_is_marked():
    panel = quality_against_size(one_group(synthetic(200)))
    assert "The axis is broken" in panel.note
    calm = [r for r in synthetic(40) if not r["options"] or r["options"]["bits"] == 4]
    assert "broken" not in quality_against_size(one_group(calm)).note
    domain = ratio_domain([{"ratio": 1.2, "low": 1.1, "high": 1.3}], clip=True)
    assert domain[0] < 1 < 1.3 < domain[1] and 1 in ticks(domain)


def test_points_packed_in_columns_hold_the_same_values():
    spec = quality_against_size(one_group(synthetic(200))).spec
    content = packed([spec])
    own = content["specs"][0]["data"]["columns"]
    rows = content["rows"]
    values = spec["data"]["values"]
    assert rows["label"] == [value["label"] for value in values]
    assert own["size"] == pytest.approx([value["size"] for value in values], rel=1e-5)
    words = rows["h_verdict"]
    assert [words["words"][i] for i in words["of"]] == [value["h_verdict"] for value in values]
    assert columns([{"a": None}, {"a": 1.5, "b": True}]) == {"a": [None, 1.5], "b": [None, True]}


def test_colours_in_the_style_sheet_and_in_pictures_are_the_same():
    page = render([sweep(3)])
    light = re.search(r":root \{(.*?)\}", page, re.DOTALL).group(1)
    found = dict(re.findall(r"(--[\w-]+): (#\w+);", light))
    assert {name: found[name] for name in LIGHT} == LIGHT


@pytest.mark.parametrize(
    "content",
    [None, 3, [], {}, {"key": 1, "status": "finished"}, {"key": "k"}],
    ids=["null", "number", "list", "empty", "key", "no status"],
)
def test_what_is_no_record_is_none(content):
    assert without_damage(content) is None


def test_records_of_an_older_version_with_missing_fields_are_shown():
    old = {"key": "k", "status": "finished", "measurements": [
        {"corpus": "c", "preset": "paper", "metrics": {"ppl": 5.0, "ppl_ratio": 1.1}},
        {"corpus": "c"}, "nonsense"], "artifact": {"size_gb": 1.0}}  # fmt: skip
    page = render([SweepData("old", "", [without_damage(old), without_damage(reference())])])
    assert "measured by protocol unknown" in page and "1.100" in page


def test_per_token_arrays_are_drawn_where_they_are_kept(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    records = synthetic(6)
    dice = np.random.default_rng(0)
    for record in records[1:4]:
        folder = tmp_path / record["key"]
        folder.mkdir()
        record["measurements"][0]["file"] = str(folder)
        save_file(
            {
                "token_kld": dice.lognormal(-5, 2, 5000).astype("float32"),
                "reference_confidence": dice.uniform(0, 1, 5000).astype("float32"),
            },
            folder / "arrays.safetensors",
        )
    (tmp_path / records[3]["key"] / "arrays.safetensors").write_bytes(b"damaged")
    tail, confidence = divergence_by_token(one_group(records))
    shares = [v["share"] for v in tail.spec["data"]["values"]]
    assert min(shares) > 0 and max(shares) <= 1
    bins = {v["bin"] for v in confidence.spec["data"]["values"]}
    assert bins == {"0-0.25", "0.25-0.5", "0.5-0.75", "0.75-0.9", "0.9-1"}
    drawn = {v["label"] for v in tail.spec["data"]["values"]}
    assert len(drawn) == 2
    (gone,) = divergence_by_token(one_group(synthetic(6)))
    assert gone.spec is None and "running the sweep again" in gone.note
    # Where none were measured there is nothing to miss.
    plain = synthetic(6)
    for record in plain:
        for measurement in record["measurements"]:
            del measurement["metrics"]["kld"]
    assert divergence_by_token(one_group(plain)) == []


@pytest.mark.parametrize("tokens", [200, 5])
def test_a_sweep_in_which_nothing_diverges_gets_its_page(tmp_path, tokens):
    import numpy as np
    from safetensors.numpy import save_file

    records = synthetic(6)
    for record in records:
        for measurement in record["measurements"]:
            metrics = measurement["metrics"]
            metrics |= {name: 0.0 for name in metrics if name.startswith("kld")}
        record["measurements"][0]["file"] = str(tmp_path)
    none = np.zeros(tokens, "float32")
    file = tmp_path / "arrays.safetensors"
    save_file({"token_kld": none, "reference_confidence": none + 0.5}, file)
    page = render([SweepData("s", "c", records)])
    assert "No token diverges by more than" in page
    # and one without any weights on disk, or with a ratio that no logarithm has
    records[1]["measurements"][0]["metrics"]["ppl_ratio"] = 0.0
    for record in records:
        record["artifact"] and record["artifact"].update(size_gb=0.0)
    assert render([SweepData("s", "c", records)])


def test_the_command_writes_page_table_text_and_picture(tmp_path, capsys):
    stored(tmp_path, "grid", synthetic(20))
    assert main(["grid", "--outputs", str(tmp_path)]) == 0
    written = [line.rpartition(".")[2] for line in capsys.readouterr().out.splitlines()]
    assert written == ["html", "csv", "md", "svg"]
    picture = (tmp_path / "sweeps/grid/report.svg").read_text()
    assert picture.startswith("<svg") and "var(--" not in picture
    stored(tmp_path, "other", synthetic(8, model="qwen-8b"))
    assert main(["grid", "other", "--outputs", str(tmp_path)]) == 0
    assert (tmp_path / "reports/grid+other/report.html").is_file()


def test_an_unknown_sweep_names_the_near_one(tmp_path, capsys):
    with pytest.raises(QsweepError, match="no sweeps in"):
        sweeps_in(tmp_path, [])
    stored(tmp_path, "bits", [])
    assert main(["bit", "--outputs", str(tmp_path)]) == 2
    assert "did you mean 'bits'?" in capsys.readouterr().err


def test_files_that_are_no_records_are_counted_not_hidden(tmp_path):
    directory = stored(tmp_path, "s", synthetic(2))
    (directory / "trials" / "broken.json").write_text('{"key": "k", ')
    (found,) = sweeps_in(tmp_path, ["s"])
    assert len(found.records) == 2 and found.problems == ["1 files in trials/ are no records"]
    assert "1 files in trials/ are no records" in render([found])


def test_a_report_that_cannot_be_written_costs_a_sweep_one_line(tmp_path):
    said = []
    (tmp_path / "report.html").mkdir()
    report_sweep(tmp_path, synthetic(3), "", said.append)
    assert len(said) == 1 and "no report was written" in said[0]


def test_a_sweep_is_read_back_from_its_tracker_and_the_report_is_logged_there(tmp_path, capsys):
    from mlflow import MlflowClient

    from qsweep.tracking import SweepFolder, TrackingConfig
    from qsweep.tracking.mlflow import MLflowTracker
    from qsweep.tracking.mlflow.journal import ui_page

    records = synthetic(4)
    directory = stored(tmp_path, "grid", records)
    config = TrackingConfig()
    tracker = MLflowTracker()
    tracker.start(SweepFolder("grid", "python -m qsweep -m quant=gptq", directory, tmp_path))
    for record in records:
        tracker.log(typed({**record, "sweep": "grid"}))
    tracker.finish(typed(records))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    page = ui_page(config, directory, tmp_path)
    assert page == (
        "http://127.0.0.1:5000/#/experiments/1/runs"
        "?viewStateShareKey=qsweep&workflowType=machine_learning"
    )
    out = tmp_path / "elsewhere" / "page.html"
    assert main(["--tracking", uri, "--outputs", str(tmp_path), "--out", str(out)]) == 0
    text = out.read_text()
    assert "python -m qsweep -m quant=gptq" in text
    assert all(record["name"].removeprefix("llama-8b ") in text for record in records)
    client = MlflowClient(uri)
    (parent,) = client.search_runs(["1"], "tags.`qsweep.sweep` != ''")
    assert "page.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    state = client.get_experiment("1").tags["mlflow.sharedViewState.qsweep"]
    assert "metrics.`ppl_ratio`" in json.loads(state)["selectedColumns"]
    capsys.readouterr()
    assert main(["gird", "--tracking", uri, "--outputs", str(tmp_path)]) == 2
    assert "did you mean 'grid'?" in capsys.readouterr().err
    assert main(["--tracking", f"sqlite:///{tmp_path / 'no.db'}"]) == 2
    assert not (tmp_path / "no.db").exists()


@pytest.mark.slow
def test_ten_thousand_trials_take_a_minute_and_two_gigabytes_at_most(tmp_path):
    import resource
    import time

    records = synthetic(10_000)
    started = time.perf_counter()
    write_report([SweepData("many", "", records)], tmp_path / "page.html")
    assert time.perf_counter() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 2e9
    assert (tmp_path / "page.html").stat().st_size < 5e6
