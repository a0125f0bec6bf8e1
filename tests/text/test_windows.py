"""Windows of the three presets, and where BOS goes, against plain loops over the text."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsweep.base.errors import ConfigError
from qsweep.text.windows import (
    PRESETS,
    Preset,
    bos_ids,
    bos_rule,
    make_windows,
    preset_key,
    preset_name,
    token_ids,
    with_preset_names,
)

DOCUMENTS = ["One sentence about nothing. " * 40, "", "def f(x):\n    return x + 1\n" * 60]


class Digits:
    """A tokenizer of whole numbers, which are their own ids; 1000 is BOS, where it has one."""

    def __init__(self, adds=None, bos=None):
        self.adds, self.bos_token_id = adds or [], bos

    def __call__(self, text, add_special_tokens=True, verbose=True):
        found = [int(word) if word.isdigit() else 7 for word in text.split()]
        return {"input_ids": [*(self.adds if add_special_tokens else []), *found]}


class GemmaishTokenizer(Digits):
    """One whose name tells what it is for."""


def numbers(count):
    return [" ".join(str(n) for n in range(count))]


def cut(count, preset, tokenizer=None, max_length=10_000, **more):
    return make_windows(numbers(count), tokenizer or Digits(), preset, max_length, **more)


def scored(windows):
    """Scored tokens with what precedes them in their window, in order."""
    found = []
    for ids, first, length in zip(
        windows.ids.tolist(), windows.first_scored.tolist(), windows.lengths.tolist(), strict=True
    ):
        found += [(ids[at], ids[:at]) for at in range(first, length)]
    return found


@pytest.fixture(scope="module")
def tokenizer(pocket_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pocket_dir)


@pytest.fixture(scope="module")
def with_bos(pocket_dir, tmp_path_factory):
    """The pocket tokenizer, changed to put a BOS before every text as Llama's does."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket_dir / name, path / name)
    changed = Tokenizer.from_file(str(path / "tokenizer.json"))
    bos = changed.id_to_token(0)
    changed.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    changed.save(str(path / "tokenizer.json"))
    return AutoTokenizer.from_pretrained(path)


# the preset of the papers


def test_windows_of_the_papers_preset_follow_each_other_and_the_rest_is_dropped():
    windows = cut(1000, Preset("paper", context=300))
    assert windows.ids.tolist() == [list(range(a, a + 300)) for a in (0, 300, 600)]
    assert windows.tokens_scored == 3 * 299
    assert [token for token, _ in scored(windows)][:2] == [1, 2]
    assert scored(windows)[299] == (301, [300])


def test_documents_are_joined_by_a_blank_line_and_tokenized_once(tokenizer):
    windows = make_windows(DOCUMENTS, tokenizer, PRESETS["paper"].override(context=64), 1024)
    stream = tokenizer("\n\n".join(DOCUMENTS))["input_ids"]
    assert windows.ids.flatten().tolist() == stream[: len(stream) // 64 * 64]
    assert windows.bos == "none"


def test_the_context_is_lowered_to_the_models_limit():
    windows = cut(1000, PRESETS["paper"], max_length=128)
    assert windows.ids.shape == (1000 // 128, 128)
    assert windows.facts()["context"] == 128
    assert windows.facts()["overrides"] == {}


def test_bos_stands_once_at_the_begin_of_the_stream(with_bos):
    windows = make_windows(DOCUMENTS, with_bos, PRESETS["paper"].override(context=64), 1024)
    # exactly what tokenizing the joined text as anyone would gives
    stream = with_bos("\n\n".join(DOCUMENTS))["input_ids"]
    assert stream[0] == 0 and 0 not in stream[1:]
    assert windows.ids.flatten().tolist() == stream[: len(stream) // 64 * 64]
    assert windows.bos == "stream"


def test_gemma_gets_bos_in_every_window_and_no_text_is_lost():
    tokenizer = Digits(adds=[1000], bos=1000)
    windows = cut(1000, Preset("paper", context=101), tokenizer, model_type="gemma3_text")
    assert windows.bos == "window"
    assert windows.ids[:, 0].eq(1000).all()
    assert windows.ids[:, 1:].flatten().tolist() == list(range(1000))
    # the window's first real token is scored too: it has BOS before it
    assert windows.tokens_scored == 1000
    assert windows.counts.eq(100).all()


def test_a_gemma_is_told_by_its_tokenizer_too_and_one_without_bos_is_left_alone():
    assert bos_rule(GemmaishTokenizer([1000], 1000)) == "window"
    assert bos_rule(Digits(bos=None), "gemma2") == "none"
    assert bos_rule(Digits([1000], 1000), "llama") == "stream"
    # a tokenizer that knows a BOS but does not put it there, as Qwen's or GPT-2's
    assert bos_rule(Digits(bos=1000), "qwen3") == "none"


def test_bos_on_request():
    assert cut(100, Preset("p", 10), Digits(bos=1000), bos="window").ids[:, 0].eq(1000).all()
    stream = cut(100, Preset("p", 10), Digits(bos=1000), bos="stream")
    assert stream.ids.flatten().tolist() == [1000, *range(99)]
    assert cut(100, Preset("p", 10), Digits([1000], 1000), bos="none").ids[0, 0] == 0
    with pytest.raises(ConfigError, match="no BOS token"):
        cut(100, Preset("p", 10), Digits(), bos="window")


# the llama.cpp preset


def llama_cpp(tokens, context, bos):
    """What llama.cpp's perplexity tool runs and scores, written from its description.

    Chunks of n_ctx tokens; the first of each becomes BOS; the logits at positions n_ctx/2 to
    n_ctx-2 are laid beside the tokens that follow them.
    """
    chunks, found = [], []
    for chunk in range(len(tokens) // context):
        ids = tokens[chunk * context : (chunk + 1) * context]
        if bos is not None:
            ids = [bos, *ids[1:]]
        chunks.append(ids)
        found += [(ids[at + 1], ids[: at + 1]) for at in range(context // 2, context - 1)]
    return chunks, found


@pytest.mark.parametrize("context", [512, 64, 33])
def test_llama_cpp_windows_are_llama_cpps(context):
    preset = PRESETS["llamacpp"].override(context=context)
    windows = cut(2000, preset, Digits(adds=[1000], bos=1000))
    # it tokenizes with BOS in front, and then overwrites the first token of every chunk
    chunks, expected = llama_cpp([1000, *range(2000)], context, 1000)
    assert windows.ids.tolist() == chunks
    assert scored(windows) == expected
    assert windows.bos == "overwrite"
    if context == 512:
        assert windows.counts.eq(255).all()


def test_llama_cpp_overwrites_nothing_where_the_vocabulary_wants_no_bos():
    windows = cut(2000, PRESETS["llamacpp"])
    chunks, expected = llama_cpp(list(range(2000)), 512, None)
    assert windows.ids.tolist() == chunks
    assert scored(windows) == expected
    assert windows.bos == "none"


def test_llama_cpp_joins_documents_by_nothing(tokenizer):
    windows = make_windows(DOCUMENTS, tokenizer, PRESETS["llamacpp"].override(context=64), 1024)
    stream = tokenizer("".join(DOCUMENTS))["input_ids"]
    assert windows.ids.flatten().tolist() == stream[: len(stream) // 64 * 64]


# the strided preset


def every_token_once(tokens, context, stride):
    """Every token but the first, each with the context of the first window that holds it."""
    found = []
    for at in range(1, len(tokens)):
        window = max(0, math.ceil((at + 1 - context) / stride))
        found.append((tokens[at], tokens[window * stride : at]))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.integers(4, 80), st.data())
def test_strided_scores_every_token_once_with_the_longest_context(count, context, data):
    stride = data.draw(st.integers(1, context - 1))
    windows = cut(count, PRESETS["strided"].override(context=context, stride=stride))
    assert scored(windows) == every_token_once(list(range(count)), context, stride)
    assert windows.tokens_scored == count - 1


def test_strided_defaults_to_1024_and_512():
    windows = cut(5000, PRESETS["strided"])
    assert windows.ids.shape[1] == 1024
    assert windows.counts.tolist()[:3] == [1023, 512, 512]
    assert min(len(before) for _, before in scored(windows)[1023:]) == 512
    assert windows.facts()["stride"] == 512


def test_strided_with_bos_in_every_window_scores_the_first_token_too():
    tokenizer = Digits(adds=[1000], bos=1000)
    preset = PRESETS["strided"].override(context=21, stride=10)
    windows = cut(95, preset, tokenizer, model_type="gemma")
    assert [token for token, _ in scored(windows)] == list(range(95))
    assert all(before[0] == 1000 for _, before in scored(windows))


def test_a_model_too_short_for_the_stride_still_has_an_overlap():
    windows = cut(1000, PRESETS["strided"], max_length=512)
    assert windows.preset.stride == 256
    with pytest.raises(ConfigError, match="eval.stride=600: must be less than the context, 512"):
        cut(1000, PRESETS["strided"].override(context=512, stride=600))


# all presets


@pytest.mark.parametrize("name", PRESETS)
def test_only_the_first_windows(name):
    preset = PRESETS[name].override(context=32, stride=8)
    few, all_of_them = cut(1000, preset.override(max_windows=3)), cut(1000, preset)
    assert torch.equal(few.ids, all_of_them.ids[:3])
    assert torch.equal(few.first_scored, all_of_them.first_scored[:3])
    assert few.facts()["overrides"]["max_windows"] == 3
    assert few.fingerprint != all_of_them.fingerprint
    assert few.fingerprint == all_of_them.select(range(3)).fingerprint


def test_facts_say_what_was_scored():
    facts = cut(1000, PRESETS["paper"].override(context=100)).facts()
    assert facts == {
        "preset": "paper",
        "overrides": {"context": 100},
        "context": 100,
        "windows": 10,
        "tokens_scored": 990,
        "bos": "none",
        "fingerprint": facts["fingerprint"],
    }


def test_the_fingerprint_follows_the_ids_and_what_is_scored():
    first = cut(1000, Preset("a", context=100))
    assert cut(1000, Preset("b", context=100)).fingerprint == first.fingerprint
    assert (
        cut(1001, Preset("a", context=100)).fingerprint == first.fingerprint
    )  # the rest is dropped
    assert cut(1000, Preset("a", context=50)).fingerprint != first.fingerprint
    half = Preset("a", context=100, scoring="second half")
    assert cut(1000, half).fingerprint != first.fingerprint


def test_the_default_preset_has_an_older_name():
    assert [preset_name(name) for name in ("gptq", "paper", "strided")] == [
        "paper",
        "paper",
        "strided",
    ]
    # in keys all presets are called what they always were
    assert [preset_key(name) for name in PRESETS] == ["gptq", "llamacpp", "strided"]
    config = {"bits": 4, "eval": {"presets": ["strided", "gptq", "paper"], "limit": None}}
    assert with_preset_names(config) == {
        "bits": 4,
        "eval": {"presets": ["strided", "paper"], "limit": None},
    }
    for other in ({"eval": {"presets": "gptq"}}, {"eval": None}, {}, {"eval": {"presets": [4]}}):
        assert with_preset_names(other) == other


def test_an_override_equal_to_the_preset_is_none():
    assert PRESETS["paper"].override(context=2048).overrides == {}
    assert PRESETS["paper"].override(stride=7) == PRESETS["paper"]


@pytest.mark.parametrize(
    ("documents", "preset", "message"),
    [
        ([], "paper", "the text is empty"),
        ([""], "llamacpp", "the text is empty"),
        (numbers(100), "paper", "too short: 100 tokens, and one window of preset paper takes 2048"),
        (numbers(500), "llamacpp", "too short: 500 tokens, .* takes 512; .*lower eval.context"),
        (numbers(1), "strided", "too short: one token"),
    ],
)
def test_too_little_text_is_one_line(documents, preset, message):
    with pytest.raises(ConfigError, match=message):
        make_windows(documents, Digits(), PRESETS[preset], 4096)


@pytest.mark.parametrize("override", [{"context": 3}, {"max_windows": 0}, {"stride": 0}])
def test_nothing_can_be_scored_in_windows_too_small(override):
    with pytest.raises(ConfigError, match="too small"):
        PRESETS["strided"].override(**override)


def test_what_a_tokenizer_adds_is_found_whatever_it_is(with_bos, tokenizer):
    assert bos_ids(with_bos) == [0]
    assert bos_ids(Digits(adds=[1000, 1001])) == [1000, 1001]
    assert bos_ids(Digits()) == []
    assert token_ids("1 2 3", Digits(adds=[1000])) == [1, 2, 3]
    # text that looks like a special token is not taken out of the stream
    assert len(token_ids("x" * 100_000, tokenizer)) > 1000
