"""Perplexity and divergence against plain loops over transformers' own logits."""

import json
import math
from dataclasses import replace

import numpy
import pytest
import torch
from torch.nn import functional

from qsweep.base.errors import ArtifactCorrupt, TrialFailed
from qsweep.evaluate import (
    WindowScores,
    build_reference,
    compare,
    measure,
    noise_floor,
    open_reference,
    read_measurement,
    reference_measurement,
    save_measurement,
)
from qsweep.evaluate.engine import Engine, batch_size, open_engine, run_windows
from qsweep.evaluate.head import KeptLogits
from qsweep.evaluate.scoring import Tile, choose_tile, score_against, token_parts
from qsweep.text.windows import PRESETS, make_windows

CONTEXT = 96
OVERRIDES = {"paper": {}, "llamacpp": {}, "strided": {"stride": 40}}


@pytest.fixture(scope="module")
def tokenizer(pocket_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pocket_dir)


@pytest.fixture(scope="module")
def text():
    from qsweep.models.tiny.text import topics

    found = topics()
    return [found[name] for name in ("assert", "assignment")]


def load(path, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@pytest.fixture(scope="module")
def model(pocket_dir):
    return load(pocket_dir)


@pytest.fixture(scope="module")
def rounded(pocket_dir):
    """The pocket model with its weights rounded to steps of a 32nd: a crude quantization."""
    model = load(pocket_dir)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.copy_((parameter * 32).round() / 32)
    return model


@pytest.fixture(scope="module")
def cut(tokenizer, text):
    def make(preset="paper", windows=5):
        chosen = PRESETS[preset].override(context=CONTEXT, max_windows=windows, **OVERRIDES[preset])
        return make_windows(text, tokenizer, chosen, 1024)

    return make


@pytest.fixture(scope="module")
def source(pocket_dir):
    return pocket_dir


def cached(model, windows, folder, source, dtype=torch.float32, **options):
    folder.mkdir(exist_ok=True)
    with torch.inference_mode():
        build_reference(model, windows, folder, **options)
    return open_reference(folder, source, "cpu", dtype)


# perplexity against loops that know nothing of windows


@torch.inference_mode()
def losses_of(model, ids, first, last):
    """NLL of the tokens at first..last-1 of one sequence, by transformers' own forward."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    targets = torch.tensor(ids[first:last])
    return functional.cross_entropy(logits[first - 1 : last - 1], targets, reduction="none")


def plain_paper(model, stream, context):
    return [
        losses_of(model, stream[a : a + context], 1, context)
        for a in range(0, len(stream) - context + 1, context)
    ]


def plain_llamacpp(model, stream, context):
    # a chunk's first token becomes BOS where the vocabulary wants one; the pocket model's does not
    return [
        losses_of(model, stream[a : a + context], context // 2 + 1, context)
        for a in range(0, len(stream) - context + 1, context)
    ]


def plain_strided(model, stream, context, stride):
    """Hugging Face's guide, with what it leaves to the reader: each token counts once."""
    found, end_before = [], 0
    for begin in range(0, len(stream), stride):
        end = min(begin + context, len(stream))
        ids = torch.tensor([stream[begin:end]])
        labels = ids.clone()
        labels[:, : end_before - begin] = -100  # the overlap is masked
        with torch.inference_mode():
            logits = model(input_ids=ids).logits.double()
        losses = functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=-100
        )
        found.append(losses[labels[0, 1:] != -100])
        end_before = end
        if end == len(stream):
            break
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_perplexity_is_a_plain_loops(preset, model, tokenizer, text, cut):
    windows = cut(preset, windows=None)
    found = measure(model, windows)
    joined = ("" if preset == "llamacpp" else "\n\n").join(text)
    stream = tokenizer(joined)["input_ids"]
    loop = {"paper": plain_paper, "llamacpp": plain_llamacpp, "strided": plain_strided}[preset]
    losses = loop(model, stream, CONTEXT, *OVERRIDES[preset].values())
    together = torch.cat(losses)
    torch.testing.assert_close(found.arrays["token_nll"].double(), together, rtol=1e-4, atol=1e-4)
    assert found.metrics["ppl"] == pytest.approx(math.exp(together.mean()), rel=1e-5)
    assert found.facts["tokens_scored"] == len(together)
    assert found.arrays["window_tokens"].tolist() == [len(part) for part in losses]
    sums = torch.stack([part.sum() for part in losses])
    torch.testing.assert_close(found.arrays["window_nll"], sums, rtol=1e-5, atol=1e-3)
    assert 1 < found.metrics["ppl"] < 500
    if preset == "paper":
        means = [float(part.mean()) for part in losses]
        error = numpy.std(means, ddof=1) / math.sqrt(len(means)) * found.metrics["ppl"]
        assert found.metrics["ppl_stderr"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox", "qwen3"])
def test_other_architectures(architecture, tiny_model, tokenizer, text, tmp_path):
    path = tiny_model(architecture)
    model = load(path)
    windows = make_windows(text, tokenizer, PRESETS["paper"].override(64, max_windows=3), 512)
    losses = torch.cat([losses_of(model, ids, 1, 64) for ids in windows.ids.tolist()])
    found = measure(model, windows, cached(model, windows, tmp_path, path))
    assert found.metrics["ppl"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert found.metrics["kld"] == 0
    assert found.facts["head"] == "split"


@pytest.mark.parametrize(("batch", "tile"), [(1, None), (4, Tile(7, 999)), (3, Tile(16, 4096))])
def test_batches_and_tiles_move_nothing_but_the_last_digits(batch, tile, model, cut):
    windows = cut()
    usual, other = measure(model, windows), measure(model, windows, batch=batch, tile=tile)
    torch.testing.assert_close(
        other.arrays["token_nll"], usual.arrays["token_nll"], rtol=1e-4, atol=1e-4
    )


# divergence


@torch.inference_mode()
def plain_predictions(reference, measured, windows):
    """Per window: both models' log-probabilities of its scored tokens, and the tokens [n, 1]."""
    for ids, scored in zip(windows.ids, windows.scored, strict=True):
        at = scored.nonzero()[:, 0]
        p, q = (
            m(input_ids=ids[None]).logits[0, at - 1].double().log_softmax(-1)
            for m in (reference, measured)
        )
        yield p, q, ids[at, None]


def plain_divergence(reference, measured, windows):
    """Per scored token: KL by torch, agreement of first tokens, change of the true probability."""
    kld, same, change = [], [], []
    for p, q, target in plain_predictions(reference, measured, windows):
        kld.append(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        change.append((q.gather(1, target).exp() - p.gather(1, target).exp())[:, 0])
    return kld, same, torch.cat(change)


@pytest.mark.parametrize("preset", PRESETS)
def test_divergence_is_torchs(preset, model, rounded, cut, tmp_path, source):
    windows = cut(preset)
    found = measure(rounded, windows, cached(model, windows, tmp_path, source))
    kld, same, change = plain_divergence(model, rounded, windows)
    tokens = torch.cat(kld)
    torch.testing.assert_close(found.arrays["token_kld"].double(), tokens, rtol=1e-3, atol=1e-5)
    metrics = found.metrics
    assert 0.001 < metrics["kld"] == pytest.approx(float(tokens.mean()), rel=1e-4)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        expected = float(numpy.quantile(tokens.numpy(), share))
        assert metrics[f"kld_{name}"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert metrics["kld_max"] == pytest.approx(float(tokens.max()), rel=1e-3)
    agreement = torch.cat(same).double()
    assert metrics["top1_agreement"] == pytest.approx(float(agreement.mean()), abs=1e-9)
    assert metrics["true_prob_rms"] == pytest.approx(float(change.square().mean().sqrt()), rel=1e-3)
    if preset == "paper":
        means = [float(part.mean()) for part in kld]
        assert metrics["kld_stderr"] == pytest.approx(
            numpy.std(means, ddof=1) / math.sqrt(len(means)), rel=1e-3
        )
    assert found.arrays["token_top1"].tolist() == [int(s) for s in torch.cat(same)]


@pytest.mark.parametrize("tile", [None, Tile(7, 999)])
def test_acceptance_and_entropy_are_plain_sums(tile, model, rounded, cut, tmp_path, source):
    windows = cut()
    found = measure(rounded, windows, cached(model, windows, tmp_path, source), tile=tile)
    plain = list(plain_predictions(model, rounded, windows))
    accepted = [1 - (p.exp() - q.exp()).abs().sum(1) / 2 for p, q, _ in plain]
    means = torch.stack([part.mean() for part in accepted])
    assert found.metrics["ear"] == pytest.approx(float(means.mean()), rel=1e-5)
    error = float(means.std()) / math.sqrt(len(means))
    assert found.metrics["ear_stderr"] == pytest.approx(error, rel=1e-3)
    assert 0.5 < found.metrics["ear"] < 0.99
    entropy = torch.cat([-(p.exp() * p).sum(1) for p, _, _ in plain])
    torch.testing.assert_close(
        found.arrays["reference_entropy"].double(), entropy, rtol=1e-4, atol=1e-4
    )
    kld = found.arrays["token_kld"].double()
    order = entropy.argsort()
    fifth = len(order) // 5
    assert found.metrics["kld_e1"] == pytest.approx(float(kld[order[:fifth]].mean()), rel=0.05)
    assert found.metrics["kld_e5"] == pytest.approx(float(kld[order[-fifth:]].mean()), rel=0.05)


def test_disjoint_predictions_are_never_accepted_and_equal_ones_always():
    device, targets = torch.device("cpu"), torch.zeros(2, dtype=torch.int64)
    p = torch.full((2, 40), -200.0)
    q = p.clone()
    p[:, 3], q[0, 30], q[1, 3] = 0.0, 0.0, 0.0
    for tile in (Tile(2, 40), Tile(2, 16)):
        found = score_against(
            KeptLogits(40, device), q, targets, KeptLogits(40, device), p, p.argmax(1), tile
        )
        assert found.acceptance.tolist() == [0.0, 1.0]
        assert found.entropy.abs().max() < 1e-6


def test_a_large_vocabulary_takes_fewer_tokens_at_once():
    small, large = (KeptLogits(size, torch.device("cpu")) for size in (4096, 262_144))
    assert choose_tile([small]) == choose_tile([small, small])
    alone, both = choose_tile([large]), choose_tile([large, large])
    assert both.vocabulary == alone.vocabulary
    assert both.tokens < alone.tokens and 8 * both.tokens * large.vocab <= 1 << 28


def test_only_what_a_mask_names_is_scored(model, rounded, cut, tmp_path, source):
    plain = cut()
    scored = torch.zeros_like(plain.ids, dtype=torch.bool)
    scored[:, [3, 4, 40, 95]] = True
    scored[2, 50:60] = True
    masked = replace(plain, mask=scored)
    assert masked.counts.tolist() == [4, 4, 14, 4, 4] and masked.tokens_scored == 30
    assert masked.positions.tolist()[:4] == [3, 4, 40, 95]
    assert masked.fingerprint != plain.fingerprint == cut().fingerprint
    whole = measure(rounded, plain, cached(model, plain, tmp_path / "a", source))
    found = measure(rounded, masked, cached(model, masked, tmp_path / "b", source))
    chosen = scored[plain.scored]
    for name in ("token_nll", "token_kld", "token_top1", "reference_entropy"):
        torch.testing.assert_close(
            found.arrays[name], whole.arrays[name][chosen], rtol=1e-4, atol=1e-4
        )
    assert found.metrics["kld"] == pytest.approx(
        float(whole.arrays["token_kld"][chosen].double().mean()), rel=1e-4
    )
    assert found.arrays["token_position"].tolist() == masked.positions.tolist()
    assert "token_position" not in whole.arrays
    few = masked.select([2, 3])
    assert few.tokens_scored == 18 and torch.equal(few.mask, scored[2:4])


def test_comparison_with_the_reference_is_paired(model, rounded, cut, tmp_path, source):
    windows = cut(windows=12)
    cached(model, windows, tmp_path, source)
    reference = reference_measurement(tmp_path, windows)
    found = measure(rounded, windows)
    figures = compare(found, reference)
    ratio = found.metrics["ppl"] / reference.metrics["ppl"]
    assert figures["ppl_ratio"] == pytest.approx(ratio)
    difference = (found.arrays["window_nll"] - reference.arrays["window_nll"]) / (CONTEXT - 1)
    half = 2.2010 * float(difference.std()) / math.sqrt(12)  # t of 11 degrees of freedom
    assert figures["ppl_ratio_low"] == pytest.approx(ratio * math.exp(-half), rel=1e-4)
    assert figures["ppl_ratio_high"] == pytest.approx(ratio * math.exp(half), rel=1e-4)
    assert figures["quality"] == pytest.approx(1 - math.log(ratio) / math.log(1.2))


def test_other_tokens_cannot_be_compared(model, cut, tmp_path, source):
    windows, others = cut(), cut(windows=4)
    reference = cached(model, windows, tmp_path, source)
    with pytest.raises(ArtifactCorrupt, match="other"):
        compare(measure(model, others), reference_measurement(tmp_path, windows))
    with pytest.raises(ArtifactCorrupt, match="other windows"):
        measure(model, others, reference)
    with pytest.raises(ArtifactCorrupt, match="other windows"):
        reference_measurement(tmp_path, others)


def test_a_single_window_has_no_interval_and_its_verdict_is_not_sure(model, cut):
    windows = cut(windows=1)
    found = measure(model, windows)
    assert "ppl_stderr" not in found.metrics
    figures = compare(found, found)
    assert figures["ppl_ratio"] == 1 and figures["verdict"] == "yes"
    assert not figures["verdict_sure"] and "ppl_ratio_low" not in figures


@torch.inference_mode()
def test_a_padded_vocabulary_is_compared_over_the_shared_part(model, rounded):
    torch.manual_seed(0)
    device = torch.device("cpu")
    p, q, extra = torch.randn(20, 100), torch.randn(20, 100), torch.randn(20, 28)
    targets = torch.randint(100, (20,))
    kld = functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True)
    for wide_p, wide_q in ((p, torch.cat([q, extra], 1)), (torch.cat([p, extra], 1), q)):
        for tile in (Tile(20, 999), Tile(20, 30)):
            found = score_against(
                KeptLogits(wide_q.shape[1], device),
                wide_q,
                targets,
                KeptLogits(wide_p.shape[1], device),
                wide_p,
                p.argmax(1),
                tile,
            )
            torch.testing.assert_close(found.kld, kld.sum(1), rtol=1e-4, atol=1e-5)
            # perplexity counts the model's whole vocabulary
            own = functional.cross_entropy(wide_q, targets, reduction="none")
            torch.testing.assert_close(found.nll, own)
            assert found.top1.tolist() == p.argmax(1).eq(q.argmax(1)).tolist()


# the reference's cache


def test_the_cache_takes_a_hidden_state_per_token_and_measures_the_reference(
    model, cut, tmp_path, source
):
    windows = cut()
    reference = cached(model, windows, tmp_path, source)
    tokens, hidden = windows.tokens_scored, model.config.hidden_size
    stored = sum(f.stat().st_size for f in tmp_path.glob("features-*"))
    assert tokens * hidden * 4 <= stored < tokens * hidden * 4 + 1000
    alone, found = measure(model, windows), reference_measurement(tmp_path, windows)
    assert torch.equal(found.arrays["token_nll"], alone.arrays["token_nll"])
    assert found.metrics == alone.metrics
    logits = model(input_ids=windows.ids).logits[:, :-1].flatten(0, 1)
    assert reference.first.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(reference.confidence, logits.softmax(-1).amax(-1))
    facts = json.loads((tmp_path / "reference.json").read_text())
    assert facts["dtype"] == "float32" and facts["protocol"] == found.facts["protocol"]


def test_several_shards_are_one(model, rounded, cut, tmp_path, source):
    windows = cut()
    row = model.config.hidden_size * 4
    one = cached(model, windows, tmp_path / "one", source)
    many = cached(model, windows, tmp_path / "many", source, shard_bytes=37 * row)
    files = sorted((tmp_path / "many").glob("features-*"))
    assert len(files) == math.ceil(windows.tokens_scored / 37)
    for start, stop in ((0, 1), (36, 38), (30, 200), (0, windows.tokens_scored)):
        part = slice(start, stop)
        assert torch.equal(many.features(part), one.features(part))
    found = [measure(rounded, windows, reference) for reference in (one, many)]
    assert torch.equal(found[0].arrays["token_kld"], found[1].arrays["token_kld"])


def test_a_model_that_cannot_be_split_keeps_its_logits(model, rounded, cut, tmp_path, source):
    windows = cut()
    plain = measure(rounded, windows, cached(model, windows, tmp_path / "a", source))
    vocab = model.config.vocab_size

    def whole(model):
        return Engine(model, None, KeptLogits(vocab, torch.device("cpu")))

    folder = tmp_path / "b"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsweep.evaluate.engine.split_model", lambda *_: None)
        build_reference(model, windows, folder)
    kept = open_reference(folder, source, "cpu", torch.float32)
    assert isinstance(kept.head, KeptLogits)
    found = measure(rounded, windows, kept, engine=whole(rounded))
    assert found.facts["head"] == "whole model"
    torch.testing.assert_close(
        found.arrays["token_kld"], plain.arrays["token_kld"], rtol=1e-3, atol=1e-5
    )
    assert batch_size(whole(rounded), CONTEXT) == 1


def test_a_reference_of_another_models_head_is_refused(model, rounded, cut, tmp_path, tiny_model):
    windows = cut()
    cached_in = tmp_path / "cache"
    cached_in.mkdir()
    build_reference(model, windows, cached_in)
    with pytest.raises(Exception, match="does not give the logits that were cached"):
        open_reference(cached_in, tiny_model("llama"), "cpu", torch.float32)


@pytest.mark.parametrize("name", ["reference.json", "tokens.safetensors", "features-00000"])
def test_a_damaged_cache_is_noticed(name, model, cut, tmp_path, source):
    windows = cut()
    cached(model, windows, tmp_path, source)
    file = next(tmp_path.glob(f"{name}*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactCorrupt, match="no readable reference"):
        open_reference(tmp_path, source, "cpu", torch.float32)


# the noise floor


def test_the_reference_against_itself_is_exactly_zero(model, cut, tmp_path, source):
    for preset in PRESETS:
        windows = cut(preset)
        reference = cached(model, windows, tmp_path / preset, source)
        found = measure(model, windows, reference)
        assert found.metrics["kld"] == found.metrics["kld_max"] == 0.0
        assert found.metrics["top1_agreement"] == found.metrics["ear"] == 1.0
        floor = noise_floor(model, windows, reference)
        assert floor["kld"] == 0.0
        assert floor["kld_floor_dtype"] == 0.0  # float32 is float32
        assert 0 <= floor["kld_floor_batch"] < 1e-5


def test_the_floor_of_bfloat16_is_its_divergence_from_float32(
    pocket_dir, model, cut, tmp_path, source
):
    windows = cut(windows=4)
    narrow = load(pocket_dir, torch.bfloat16)
    reference = cached(narrow, windows, tmp_path, source, torch.bfloat16)
    floor = noise_floor(narrow, windows, reference)
    assert floor["kld"] == 0.0
    usual = int(reference.facts["batch"])
    sample = windows.select(range(min(4, max(2, usual))))
    kld, _, _ = plain_divergence(narrow, model, sample)
    assert floor["kld_floor_dtype"] == pytest.approx(float(torch.cat(kld).mean()), rel=0.1)
    assert floor["kld_floor_dtype"] > 1e-5
    # it is as narrow as it was
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


# failures


def test_logits_that_are_not_finite_name_the_window(pocket_dir, cut):
    broken = load(pocket_dir)
    windows = cut()
    # a token that no other window holds breaks the third
    inside = set(windows.ids[2].tolist())
    others = set(windows.ids[[0, 1, 3, 4]].flatten().tolist())
    token = next(iter(inside - others))
    broken.get_input_embeddings().register_forward_hook(
        lambda _, inputs, output: output.masked_fill((inputs[0] == token)[..., None], math.nan)
    )
    with pytest.raises(TrialFailed, match=r"not finite: .* first in window 2 of 5"):
        measure(broken, windows)


def test_a_batch_that_does_not_fit_is_halved(model, cut):
    windows = cut()
    engine = open_engine(model, windows.ids)
    seen = []

    class Tight(Engine):
        """A device with room for two windows."""

        def features(self, ids):
            seen.append(len(ids))
            if len(ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return engine.features(ids)

    tight = Tight(engine.model, engine.body, engine.head)
    with torch.inference_mode():
        found = measure(model, windows, engine=tight, batch=8)
        assert seen == [5, 4, 2, 2, 1]
    assert found.facts["batch"] == 2
    assert found.metrics["ppl"] == pytest.approx(measure(model, windows).metrics["ppl"], rel=1e-5)


def test_not_even_one_window(model, cut):
    windows = cut()
    engine = open_engine(model, windows.ids)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrialFailed, match=r"single window of 96 tokens; lower eval.context"):
        run_windows(engine, windows, full, lambda done: None, batch=1)


# what is left behind


def test_a_measurement_is_read_as_it_was_written(model, cut, tmp_path):
    found = measure(model, cut())
    save_measurement(found, tmp_path)
    again = read_measurement(tmp_path)
    assert (again.metrics, again.facts) == (found.metrics, found.facts)
    assert all(torch.equal(again.arrays[name], found.arrays[name]) for name in found.arrays)
    (tmp_path / "arrays.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactCorrupt, match="not a measurement"):
        read_measurement(tmp_path)
    assert isinstance(again, WindowScores)


def test_parts_are_nearly_equal_and_never_too_large():
    for count, largest in ((10, 3), (9, 3), (1, 5), (1000, 7)):
        parts = token_parts(count, largest)
        assert [n for part in parts for n in range(part.start, part.stop)] == list(range(count))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) <= largest and max(sizes) - min(sizes) <= 1
