"""The table of an artifact's tensors: made beside a trial, kept, and what its record says of it."""

import dataclasses
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.progress import silent
from qsweep.formats.artifact import Artifact, Size, to_content
from qsweep.formats.container import container
from qsweep.formats.gguf.rules import Layout, Rule, to_json
from qsweep.formats.tensor_table import from_csv, in_order, to_csv
from qsweep.formats.weight_errors import differences, left_out, tensor_table
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN
from qsweep.results.record_file import content_of, record_of
from qsweep.results.tensor_flags import claim_of, flags_of, notes_of
from qsweep.sweep.recording import finished_record
from qsweep.sweep.tensors import lacks_table
from qsweep.sweep.trial import run_trial

pytestmark = pytest.mark.usefixtures("one_thread")

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def facts(pocket_dir):
    return read_facts(pocket_dir, "pocket")


@pytest.fixture(scope="module")
def rounded(facts, tmp_path_factory):
    """The embedded model rounded to 4 bits, as a GPTQ checkpoint."""
    out = tmp_path_factory.mktemp("rounded")
    return RTN(bits=4, group_size=64).quantize(SourceModel(facts, "cpu"), None, out)


@pytest.fixture
def damaged(rounded, tmp_path):
    """``damaged(change)`` gives the same artifact after ``change`` of its tensors by name."""

    def make(change):
        place = tmp_path / "damaged"
        shutil.copytree(rounded.path, place)
        file = place / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return Artifact(place, "gptq", container("gptq").size(place))

    return make


def flags(artifact, facts, options=None, method="rtn"):
    rows = tensor_table(artifact, facts, "cpu")
    claim = claim_of({"bits": 4} if options is None else options, method)
    return list(flags_of(rows, claim, left_out(rows, facts.path)))


def test_errors_are_those_of_the_dequantized_weights(rounded, facts):
    rows = {row.name: row for row in tensor_table(rounded, facts, "cpu")}
    base = load_file(facts.path / "model.safetensors")
    dense = container("gptq").dense_weights(rounded, facts.path, "cpu")
    assert set(rows) == set(base)
    for name, weight in base.items():
        distance = dense[name][...].double() - weight.double()
        row = rows[name]
        assert row.relative_error == pytest.approx(float(distance.norm() / weight.double().norm()))
        assert row.max_error == pytest.approx(float(distance.abs().max()))
        assert row.linear == row.quantized == (name.removesuffix(".weight") in facts.linears)
        assert row.weights == weight.numel() and row.constant == 0
    assert rows[f"{LAYER}.weight"].type == "int4 g64 asym"
    assert 0.02 < rows[f"{LAYER}.weight"].relative_error < 0.2
    assert rows["model.norm.weight"].relative_error == 0 == rows["model.norm.weight"].changed
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    size = rounded.size
    assert sum(row.bits for row in rows.values()) == pytest.approx(size.total_bits)


def test_a_sound_artifact_has_no_flags(rounded, facts):
    assert flags(rounded, facts) == []


def test_the_table_is_the_same_when_it_is_read_again(rounded, facts):
    rows = tensor_table(rounded, facts, "cpu")
    assert from_csv(to_csv(rows)) == rows == in_order(reversed(rows))
    assert rows[0].kind == "model.embed_tokens" and rows[-1].kind == "model.norm"
    assert [row.layer for row in rows[1:-1]] == sorted(row.layer for row in rows[1:-1])
    for text in ("", "name\n", to_csv(rows).replace("int4 g64 asym,4", "int4 g64 asym,x", 1)):
        with pytest.raises(ArtifactCorrupt, match=r"^there: not a table of tensors"):
            from_csv(text, "there")


def test_a_scale_that_is_no_number_is_named_and_nothing_is_measured(planned, facts, damaged):
    def damage(tensors):
        tensors[f"{LAYER}.scales"][0, 3] = float("nan")
        tensors["model.layers.2.self_attn.q_proj.scales"][0, 0] = float("inf")

    artifact = damaged(damage)
    store, plan = planned("quant=rtn", "bits=4")

    def make(out):  # what a quantizer leaves that wrote such scales
        shutil.copytree(artifact.path, out, dirs_exist_ok=True)
        return to_content(artifact)

    store.build("artifacts", plan.artifact, make)
    with pytest.raises(ArtifactCorrupt) as caught:
        run_trial(plan, store, silent)
    line = str(caught.value)
    assert f"{LAYER}.weight (int4 g64 asym): 64 of 196608 weights are NaN or infinite" in line
    assert "and so in 1 more tensors" in line and "\n" not in line
    assert finished_record(plan, store) is None
    assert not list((store.root / "tensors").iterdir())
    assert not (store.root / "measurements").exists()


def test_a_norm_that_is_another_one_is_flagged_with_how_much(damaged, facts):
    name = "model.layers.2.input_layernorm.weight"

    def damage(tensors):
        tensors[name] = tensors[name].float() * 1.01

    (line,) = flags(damaged(damage), facts)
    assert line.startswith(f"{name} is stored in F32, not quantized, and differs from the base's")
    assert "1 %" in line


def test_rounding_to_16_bits_is_no_change(facts, damaged):
    def widen(tensors):
        for name, tensor in tensors.items():
            if "norm" in name:
                tensors[name] = tensor.float()

    assert flags(damaged(widen), facts) == []


def test_layers_in_16_bits_are_named_with_their_share(rounded, facts, damaged, pocket_dir):
    base = load_file(pocket_dir / "model.safetensors")

    def undo(tensors):
        for layer in range(4):
            stem = f"model.layers.{layer}.mlp.down_proj"
            for part in ("qweight", "qzeros", "scales", "g_idx"):
                del tensors[f"{stem}.{part}"]
            tensors[f"{stem}.weight"] = base[f"{stem}.weight"]

    artifact = damaged(undo)
    (line,) = flags(artifact, facts)
    assert re.match(
        r"claims 4 bits; 25 % of its linear weights lie in BF16 \(mlp.down_proj\)", line
    )
    # of a file that claims nothing, nothing is said
    assert flags(artifact, facts, {}) == []


def test_of_a_gguf_file_each_tensor_has_its_own_type(facts, tmp_path):
    gguf = pytest.importorskip("gguf")
    base = load_file(facts.path / "model.safetensors")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    rules, expected = {}, {}
    for name, weight in base.items():
        kind = gguf.GGMLQuantizationType.F32
        if weight.ndim == 2:
            kinds = gguf.GGMLQuantizationType
            kind = kinds.Q8_0 if "down_proj" in name else kinds.Q4_0
        packed = gguf.quants.quantize(weight.float().numpy(), kind)
        dense = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        distance = dense.double() - weight.double()
        expected[name] = (kind.name, float(distance.norm() / weight.double().norm()))
        rules[name] = Rule(f"blk.{name}")
        writer.add_tensor(f"blk.{name}", packed, raw_dtype=kind)
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    details = {"tensors": to_json(Layout(rules, {}), list(base))}
    artifact = Artifact(tmp_path, "gguf", Size(1, 1, 1, 1, 1), details=details)
    rows = tensor_table(artifact, facts, "cpu")
    assert {row.name: row.type for row in rows} == {n: type_ for n, (type_, _) in expected.items()}
    for row in rows:
        assert row.relative_error == pytest.approx(expected[row.name][1], rel=1e-4)
        assert row.bpw == {"Q8_0": 8.5, "Q4_0": 4.5, "F32": 32.0}[row.type]
        assert row.quantized == (row.type != "F32")
    assert sum(row.share for row in rows) == pytest.approx(1)
    (note,) = notes_of(rows, claim_of({"type": "Q4_0"}, "gguf"))
    assert note.startswith("Its output head, which is the embedding, is quantized, too (Q4_0, 4.50")


def test_an_expert_that_is_constant_is_counted_in_its_stack():
    base = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(1))
    ours = base + 0.01
    ours[2] = 0
    found = differences(ours, base, "cpu")
    assert found.constant == 1 and found.non_finite == 0
    assert found.relative_error == pytest.approx(
        float((ours - base).norm() / base.norm()), rel=1e-5
    )
    # what is constant in the base, too, as a norm of ones, is as it should be
    assert differences(torch.full((8,), 2.0), torch.ones(8), "cpu").constant == 0
    ours[1, 0, 0] = float("nan")
    assert differences(ours, base, "cpu").non_finite == 1
    # and so is what is no number there
    base[1, 0, 0] = float("nan")
    assert differences(ours, base, "cpu").non_finite == 0


def test_a_layer_of_zeros_is_flagged(damaged, facts):
    def damage(tensors):
        tensors[f"{LAYER}.scales"].zero_()

    lines = flags(damaged(damage), facts)
    assert any(
        line.startswith("1 tensors hold a single number") and LAYER in line for line in lines
    )


def test_what_is_left_out_is_flagged(damaged, facts):
    lines = flags(damaged(lambda tensors: tensors.pop("model.norm.weight")), facts)
    assert lines[0].startswith("1 tensors of the base are not in it (model.norm.weight)")


def test_an_outlier_among_its_peers_is_named(rounded, facts):
    rows = tensor_table(rounded, facts, "cpu")
    peers = [r for r in rows if r.kind == "mlp.up_proj"]
    many = [
        dataclasses.replace(peers[n % 4], name=f"model.layers.{n}.mlp.up_proj.weight")
        for n in range(12)
    ]
    claim = claim_of({"bits": 4}, "rtn")
    assert list(flags_of(many, claim, [])) == []
    many[7] = dataclasses.replace(many[7], relative_error=0.4)
    (line,) = flags_of(many, claim, [])
    assert line.startswith("model.layers.7.mlp.up_proj.weight is 40 % away from the base's where")


def test_scales_folded_into_norms_are_a_note_of_awq_and_a_flag_of_others(rounded, facts):
    rows = [
        dataclasses.replace(row, changed=0.3) if "layernorm" in row.name else row
        for row in tensor_table(rounded, facts, "cpu")
    ]
    (line,) = flags_of(rows, claim_of({"bits": 4}, "rtn"), [])
    assert "scales are folded into its norms, or it is not made from this base" in line
    awq = claim_of({"bits": 4}, "awq")
    assert list(flags_of(rows, awq, [])) == []
    assert any("folded" in note for note in notes_of(rows, awq))


@pytest.mark.parametrize(
    ("options", "names", "bits"),
    [
        ({"bits": 3}, (), 3),
        ({"type": "Q2_K"}, (), 2),
        ({"type": "IQ4_XS"}, (), 4),
        ({"type": "Q8_0"}, (), 8),
        ({"type": "F16"}, (), None),
        ({}, ("Llama-3.1-8B-Instruct-Q5_K_M.gguf",), 5),
        ({}, ("Qwen3-4B-FP8",), 8),
        ({}, ("Llama-3-8B-W4A16",), 4),
        ({}, ("phi-4-AWQ-4bit",), 4),
        ({}, ("gpt-oss-20b-mxfp4",), 4),
        ({}, ("Qwen3-8B",), None),
        ({}, (), None),
    ],
)
def test_what_a_name_claims(options, names, bits):
    assert claim_of(options, "existing", names).bits == bits


def test_counted_bits_beyond_what_is_claimed(rounded, facts):
    rows = tensor_table(rounded, facts, "cpu")
    (line,) = flags_of(rows, claim_of({"type": "Q2_K"}, "gguf"), [])
    assert line.startswith("claims Q2_K; its linear weights take 4.41 bits each (int4 g64 asym)")


def test_a_trial_keeps_its_table_and_an_older_store_gets_one(planned):
    store, plan = planned("quant=rtn", "bits=4", "eval.divergence=false")
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    assert {t.type for t in record.tensors.types} == {"int4 g128 asym", "BF16"}
    assert sum(t.share for t in record.tensors.types) == pytest.approx(1, abs=1e-3)
    assert record.tensors.worst[0].relative_error >= record.tensors.worst[-1].relative_error > 0
    assert {len(kind.layers) for kind in record.tensors.kinds} == {4}
    assert record_of(content_of(record)) == record
    assert finished_record(plan.reference(), store).tensors is None
    assert not lacks_table(plan, record, store)
    # as an older version left it: finished, and the table is all that a run makes
    (entry,) = (store.root / "tensors").iterdir()
    held = {kind: sorted(p.stat().st_mtime_ns for p in (store.root / kind).iterdir())
            for kind in ("artifacts", "measurements")}  # fmt: skip
    store.remove("tensors", entry.name)
    older = finished_record(plan, store)
    assert older.finished and older.tensors is None and lacks_table(plan, older, store)
    run_trial(plan, store, silent)
    assert finished_record(plan, store) == record
    assert held == {kind: sorted(p.stat().st_mtime_ns for p in (store.root / kind).iterdir())
                    for kind in held}  # fmt: skip
