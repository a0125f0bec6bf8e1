"""Maps of bits on the report's page: which artifacts have one, what is drawn, and on what scale."""

import re

import pytest

from helpers.browser import CHROMIUM, dom_of
from helpers.synthetic import synthetic
from helpers.typed import on_disk, typed
from qsweep.results.assignment import assignment_in
from qsweep.results.html import write_report
from qsweep.results.html.assignment import assignments, page_domain
from qsweep.results.html.bits_map import Map, bits_domain, spec
from qsweep.results.html.data import SweepData, groups
from qsweep.results.html.page import render
from qsweep.results.html.theme import LIGHT
from qsweep.results.html.vega import svg

groups, render, write_report = map(on_disk, (groups, render, write_report))

BITS = {"IQ2_XS": 2.3125, "Q4_K": 4.5, "Q6_K": 6.5625, "BF16": 16}
KINDS = ("self_attn.q_proj", "mlp.experts.up_proj", "mlp.down_proj")
UNIFORM = [["Q4_K"] * 3]


def tensors(kinds, names=KINDS):
    """What a record says of layers that are stored as these types, a list for each kind."""
    types = {t: b for t, b in BITS.items() if any(t in one for one in kinds) or t == "BF16"}
    return {
        "types": [
            {"type": t, "tensors": 1, "weights": 9, "bpw": b, "share": 0.2, "quantized": t != "BF16"}
            for t, b in types.items()
        ],
        "kinds": [
            {"kind": name, "layers": list(range(len(one))), "types": one,
             "bpw": [BITS[t] for t in one], "errors": [0.1] * len(one), "weights": [10] * len(one)}
            for name, one in zip(names, kinds, strict=False)
        ],
        "beside": [{"kind": "model.embed_tokens", "type": "BF16", "bpw": 16, "weights": 50},
                   {"kind": "lm_head", "type": "BF16", "bpw": 16, "weights": 50}],
    }  # fmt: skip


def mixed(layers=4, least="IQ2_XS"):
    own = ["BF16", *[least] * (layers - 1)]
    return [["Q4_K"] * layers, ["Q4_K", *["Q6_K"] * (layers - 1)], own]


def trials(*kinds):
    """A sweep of the reference and an artifact for each."""
    records = [r for r in synthetic(60) if r["status"] == "finished"][: len(kinds) + 1]
    for record, stored in zip(records[1:], kinds, strict=True):
        record["tensors"] = tensors(stored)
    return records


def panels(*kinds):
    (group,) = groups(trials(*kinds))
    return assignments(group)


def one_map(stored, label="a mix"):
    (record,) = [r for r in typed(trials(stored)) if r.tensors is not None]
    return Map(label, assignment_in(record.tensors))


def drawn(picture):
    """The texts of a picture, and the colours that its rectangles are filled with."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    groups_ = re.findall(r'<g class="mark-rect role-mark [^>]*>(.*?)</g>', picture, re.DOTALL)
    cells = [path for one in groups_ for path in re.findall(r"<path [^>]*>", one)]
    return texts, [re.search(r' fill="([^"]*)"', path).group(1) for path in cells]


def test_only_mixes_have_a_map_and_a_line_says_so_of_the_others():
    assert panels(UNIFORM, UNIFORM) == []
    (panel,) = panels(UNIFORM, mixed(), UNIFORM)
    assert len(panel.spec["vconcat"]) == 1 and panel.wide
    assert panel.note.endswith("2 more artifacts store all linear layers alike and have no map.")
    ((label, mean, line),) = panel.lines
    assert line == "4.47 bpw: 16 bits (kept) ×1, Q6_K ×3, Q4_K ×5, IQ2_XS ×3"
    assert mean == "5.43" and f"{label}: {line}" in panel.alt
    assert panel.spec["vconcat"][0]["title"]["text"] == label
    assert "no map" not in panels(mixed())[0].note
    assert "One more artifact stores all linear layers alike and has no map" in (
        panels(mixed(), UNIFORM)[0].note
    )


def test_a_map_has_a_row_for_each_kind_and_a_bar_for_what_is_in_no_layer():
    one = one_map(mixed())
    made = spec([one], bits_domain([one.assigned]))
    texts, fills = drawn(svg(made))
    rows = ["embed_tokens", "q_proj", "down_proj", "experts.up_proj", "lm_head"]
    assert [text for text in texts if text in rows] == rows
    assert texts.count("a mix") == 1 and "decoder layer" in texts and "not quantized" in texts
    figures = [text for text in texts if text in ("4.5", "6.56", "2.31", "16")]
    assert sorted(figures) == sorted(["4.5"] * 5 + ["6.56"] * 3 + ["2.31"] * 3 + ["16"] * 3)
    # Twelve cells and two bars; what is not quantized has no colour of the scale.
    assert len(fills) == 14 and fills.count(LIGHT["--paper"]) == 3
    assert len(set(fills)) == 4


def test_all_maps_of_a_page_are_on_one_scale():
    few, many = mixed(), [["Q4_K", "Q6_K"]]
    first, second = groups([*trials(few), *_elsewhere(trials(many))])
    domain = page_domain([first, second])
    assert domain == (2, 7) == bits_domain([one_map(few).assigned, one_map(many).assigned])
    page = render([SweepData("s", "", [*trials(few), *_elsewhere(trials(many))])])
    assert page.count('"domain": [2, 7]') == 2
    assert page_domain(groups(trials(UNIFORM))) is None
    # A scale of what hardly differs would show a hair as a gulf.
    assert bits_domain([one_map(UNIFORM).assigned]) == (3, 5)
    assert page_domain(groups(trials([["BF16", "IQ2_XS"]]))) == (1, 3)


def _elsewhere(records):
    for record in records:
        record["key"] += "-elsewhere"
        for measurement in record["measurements"]:
            measurement["facts"]["windows"] = 7
    return records


def test_of_many_mixes_some_are_folded_away_and_all_have_a_line():
    first, rest = panels(*[mixed()] * 20)
    assert (len(first.spec["vconcat"]), len(rest.spec["vconcat"])) == (6, 10)
    assert not first.folded and rest.folded and len(first.lines) == 20
    assert rest.note.endswith("Of 4 more the table above has a line each.")
    titles = [part["title"]["text"] for p in (first, rest) for part in p.spec["vconcat"]]
    assert titles == [line[0] for line in first.lines][:16]
    page = render([SweepData("s", "", trials(*[mixed()] * 20))])
    assert page.count("<summary><h3>Bits by layer of 10 more</h3></summary>") == 1


def test_a_page_of_many_layers_stays_small():
    def size(kinds):
        return len(render([SweepData("s", "", trials(*kinds))]))

    large = [[["Q4_K", *["Q6_K"] * 79]] * 3] * 16
    small = [UNIFORM] * 16
    assert size(large) - size(small) < 400_000


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_maps_and_leaves_what_is_folded_until_it_is_opened(tmp_path):
    evil = "</script><script>document.body.id='owned'</script>"
    records = trials(*[mixed()] * 8)
    records[1]["tensors"] = tensors(mixed(), names=(f"mlp.{evil}", "a'\"\\b", "c"))
    page = tmp_path / "page.html"
    write_report([SweepData("maps", "", records)], page)
    dom = dom_of(page, tmp_path / "profile")
    dom = re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)
    assert 'data-ready="yes"' in dom and "could not be drawn" not in dom
    assert not re.search(r"<body[^>]*owned", dom)
    shown = dom[dom.index('id="p1-assignment"') : dom.index('id="p1-assignment-more"')]
    folded = dom[dom.index('id="p1-assignment-more"') :].partition("</section>")[0]
    assert 'class="marks"' in shown and "experts.up_proj" in shown
    assert 'class="marks"' not in folded and "Bits by layer of 2 more" in folded
