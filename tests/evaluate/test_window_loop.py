"""The loop over windows never asks the device for a value, and its cache is written beside it."""

import pytest
import torch
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from qsweep.evaluate import build_reference, measure, open_reference, reference_measurement
from qsweep.evaluate.engine import open_engine
from qsweep.evaluate.head import split_model
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.text.windows import Preset, Windows

# What makes the CPU wait for a GPU: a value, or a shape that depends on values.
WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function) in WAITING
        return function(*args, **(kwargs or {}))


def some_windows(count, context=48):
    ids = torch.randint(0, 4096, (count, context), generator=torch.Generator().manual_seed(0))
    full = torch.full((count,), context)
    return Windows(ids, torch.ones_like(full), full, Preset("gptq", context), "none")


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request, tiny_model):
    facts = read_facts(tiny_model(request.param), request.param)
    model = load_dense(reference_artifact(facts), facts.path, dtype=torch.bfloat16, device="cpu")
    return model, facts.path


def waits(run, *arguments, **named):
    with Waits() as seen:
        run(*arguments, **named)
    return seen.count


def test_more_windows_do_not_mean_more_waiting(model, tmp_path):
    network, source = model
    counts = []
    for number in (2, 6):
        windows, out = some_windows(number), tmp_path / str(number)
        out.mkdir()
        build_reference(network, windows, out)
        reference = open_reference(out, source, "cpu", torch.bfloat16)
        (out / "again").mkdir()
        counts.append(
            (
                waits(measure, network, windows, batch=1),
                waits(measure, network, windows, reference, batch=1),
                waits(build_reference, network, windows, out / "again"),
            )
        )
    assert counts[0] == counts[1]


def test_transformers_is_kept_from_asking_whether_windows_are_packed(model, monkeypatch):
    # It asks the device, and not while a dispatch mode watches: so it has a test of its own.
    asked = []
    original = masking_utils.find_packed_sequence_indices

    def ask(position_ids):
        asked.append(position_ids)
        return original(position_ids)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", ask)
    network = model[0]
    before = open_engine(network, some_windows(1).ids)
    asked.clear()
    measured = measure(network, some_windows(3), batch=1, engine=before)
    assert not asked
    assert masking_utils.find_packed_sequence_indices is ask
    with torch.inference_mode():
        network(some_windows(1).ids)
    assert asked, "transformers no longer asks: the engine need not keep it from asking"
    # And nothing but the question is gone.
    with torch.inference_mode():
        logits = network(some_windows(3).ids).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), some_windows(3).ids[:, 1:].flatten()
    )
    assert measured.metrics["ppl"] == pytest.approx(float(expected.exp()), rel=1e-3)


def test_shards_of_any_size_hold_the_same_features(model, tmp_path):
    network, source = model
    windows = some_windows(5)
    found = []
    for number, size in enumerate((1 << 30, 30_000, 1)):
        out = tmp_path / str(number)
        out.mkdir()
        build_reference(network, windows, out, shard_bytes=size)
        reference = open_reference(out, source, "cpu", torch.bfloat16)
        found.append(reference.features(slice(3, windows.tokens_scored - 2)))
        assert torch.equal(reference_measurement(out, windows).arrays["token_nll"], reference.nll)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(list((tmp_path / "2").glob("features-*"))) == windows.tokens_scored


def test_a_cache_that_cannot_be_written_fails(model, tmp_path):
    with pytest.raises(SafetensorError, match="No such file"):
        build_reference(model[0], some_windows(2), tmp_path / "missing", shard_bytes=10_000)


def test_out_of_memory_is_not_taken_for_another_architecture(model):
    network = model[0]

    def starve(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = network.get_output_embeddings().register_forward_pre_hook(starve)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            split_model(network, some_windows(1).ids)
    finally:
        hook.remove()
