"""Log-likelihoods and generation: quick ways against plain ones, and broken models."""

import random

import pytest
import torch

from qsweep.base.errors import QsweepError, TrialFailed
from qsweep.tasks import likelihood
from qsweep.tasks.generation import cut, new_tokens, rows_at_once
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Pair, Sampling
from qsweep.tasks.rows import Branch, TokenRow, common_prefix, last_tokens, make_rows

WORDS = "alpha return def class import the function value list string object method open".split()
HEADER = "The following are questions, each with its answer.\n1 + 2 = 3\n4 + 5 = 9\nYes it is so.\n"


def load(path, **more):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return LanguageModel(model, AutoTokenizer.from_pretrained(path), 512)


@pytest.fixture(scope="module")
def pocket(pocket_dir):
    return load(pocket_dir)


def pairs_for(lm, questions=9, header=HEADER):
    rng = random.Random(0)
    found = []
    for _ in range(questions):
        context = header + " ".join(rng.choices(WORDS, k=rng.randrange(4, 30)))
        for _ in range(rng.randrange(1, 5)):
            found.append(
                lm.pair(context, " " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 7))))
            )
    return found


def plain(lm, pairs):
    """Text by text through the whole model: nothing of likelihood.py."""
    found = []
    for pair in pairs:
        ids = torch.tensor([[*pair.context, *pair.continuation]])
        with torch.inference_mode():
            logits = lm.model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
        logits = logits[len(pair.context) - 1 :]
        targets = torch.tensor(pair.continuation)
        values = logits.log_softmax(-1).gather(1, targets[:, None])
        found.append((float(values.sum()), bool((logits.argmax(-1) == targets).all())))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gemma3_text"])
def test_shared_contexts_and_prefixes_change_no_score(tiny_model, architecture):
    lm = load(tiny_model(architecture))
    pairs = pairs_for(lm)
    for got, (logprob, greedy) in zip(lm.loglikelihoods(pairs), plain(lm, pairs), strict=True):
        assert got.logprob == pytest.approx(logprob, abs=2e-3)
        assert got.greedy == greedy
    assert lm.facts.get("shared_prefixes", True)


def test_scores_of_the_embedded_model_to_a_millionth(pocket):
    pairs = pairs_for(pocket)
    for got, (logprob, greedy) in zip(
        pocket.loglikelihoods(pairs), plain(pocket, pairs), strict=True
    ):
        assert got.logprob == pytest.approx(logprob, rel=3e-6, abs=3e-5)
        assert got.greedy == greedy


def test_what_is_shared_is_computed_once(pocket, monkeypatch):
    pairs = pairs_for(pocket)
    seen = []
    original = likelihood._inputs

    def counting(lm, batch, prefix):
        seen.append(sum(row.length - prefix for row in batch))
        return original(lm, batch, prefix)

    monkeypatch.setattr(likelihood, "_inputs", counting)
    pocket.loglikelihoods(pairs)
    assert sum(seen) < 0.5 * sum(len(p.context) + len(p.continuation) - 1 for p in pairs)


def test_a_model_that_does_not_bear_short_cuts_is_computed_plainly(tiny_model, monkeypatch):
    lm = load(tiny_model("llama"))
    original = likelihood._inputs

    def ignoring_branches(lm, batch, prefix):
        found = original(lm, batch, prefix)
        return likelihood._Inputs(found.ids, found.positions, None, found.starts)

    monkeypatch.setattr(likelihood, "_inputs", ignoring_branches)
    pairs = pairs_for(lm)
    for got, (logprob, _) in zip(lm.loglikelihoods(pairs), plain(lm, pairs), strict=True):
        assert got.logprob == pytest.approx(logprob, abs=2e-3)
    assert lm.facts["shared_prefixes"] is False


def test_rows_join_what_shares_a_context():
    a, b = (1, 2, 3), (1, 2, 4)
    pairs = [Pair(a, (5,)), Pair(b, (6, 7)), Pair(a, (8, 9))]
    rows = make_rows(pairs, 100, 1000)
    assert rows == [
        TokenRow(a, (Branch(0, (5,), 2), Branch(2, (8, 9), 2))),
        TokenRow(b, (Branch(1, (6, 7), 2),)),
    ]
    assert rows[0].length == 4
    # Too long a row is cut between continuations; too long a text loses its begin.
    assert len(make_rows([Pair(a, (5,) * 9)] * 4, 100, 20)) == 2
    (row,) = make_rows([Pair(tuple(range(50)), (7, 7))], 10, 1000)
    assert row.stem == tuple(range(41, 50)) and row.length == 10


def test_a_common_prefix_leaves_each_stem_a_token():
    long = tuple(range(40))
    rows = [TokenRow(long, (Branch(0, (1,), 39),)), TokenRow((*long, 5), (Branch(1, (1,), 40),))]
    assert common_prefix(rows) == 39
    assert common_prefix(rows[:1]) == 0
    assert (
        common_prefix([TokenRow((1, 2), rows[0].branches), TokenRow((1, 3), rows[0].branches)]) == 0
    )


def test_a_continuation_beyond_the_context_is_refused(pocket):
    with pytest.raises(QsweepError, match="does not fit the model's context"):
        pocket.loglikelihoods([Pair((1,), tuple(range(1, 600)))])
    assert pocket.loglikelihoods([]) == []


def test_blanks_at_the_end_of_a_context_belong_to_the_continuation(pocket):
    assert pocket.pair("one two ", "three") == pocket.pair("one two", " three")
    empty = pocket.pair("", "word")
    assert empty.context == (pocket.start_token,)


def test_bos_stands_once_where_the_tokenizer_adds_it(pocket_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    lm = load(pocket_dir)
    assert lm.facts["bos"] == "none"
    assert lm.encode("abc")[0] != tokenizer.bos_token_id
    lm._bos = [tokenizer.bos_token_id]
    once = lm.encode("abc")
    assert once[0] == tokenizer.bos_token_id
    assert lm.encode(f"{tokenizer.bos_token}abc") == once


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_batches_do_not_change_what_is_generated(tiny_model, architecture):
    lm = load(tiny_model(architecture))
    prompts = [lm.encode(text) for text in ("def add(a, b):", "one", "the value of the list is")]
    together = lm.generate(prompts, Sampling(12))
    lm.batch_size = 1
    assert lm.generate(prompts, Sampling(12)) == together
    greedy = list(prompts[1])
    for _ in range(12):
        with torch.inference_mode():
            greedy.append(int(lm.model(torch.tensor([greedy])).logits[0, -1].argmax()))
    text = lm.tokenizer.decode(greedy[len(prompts[1]) :], skip_special_tokens=True)
    assert together[1].startswith(text) or text.startswith(together[1])


def test_generation_ends_at_the_stop_text_and_cuts_it_off(pocket):
    whole = pocket.generate([pocket.encode("The")], Sampling(24))[0]
    stop = whole[6:9]
    ended = pocket.generate([pocket.encode("The")], Sampling(24, (stop,)))[0]
    assert ended == whole[: whole.index(stop)]
    assert cut("a;b,c", (",", ";")) == "a" and cut("abc", ()) == "abc"


def test_more_rows_for_heavier_models(pocket):
    assert 4 <= rows_at_once(pocket.model, 500) <= rows_at_once(pocket.model, 50) <= 64


def broken(path, name):
    lm = load(path)
    lm.model.get_parameter(name).view(-1)[0] = float("nan")
    return lm


def test_nonfinite_logits_name_the_layer_where_they_begin(tiny_model):
    path = tiny_model("llama")
    lm = broken(path, "model.layers.1.mlp.down_proj.weight")
    said = (
        r"not finite: they begin in model\.layers\.1\.mlp\.down_proj \(its weights are not finite\)"
    )
    with pytest.raises(TrialFailed, match=said):
        lm.loglikelihoods([lm.pair("one two", " three four")])
    with pytest.raises(
        TrialFailed, match=r"at step 1 of generation: they begin in model\.layers\.1"
    ):
        lm.generate([lm.encode("one two")], Sampling(4))


def test_nonfinite_logits_fail_a_perplexity_with_the_layer_too(tiny_model):
    from qsweep.evaluate import measure
    from qsweep.text.windows import PRESETS, make_windows

    lm = broken(tiny_model("llama"), "model.layers.0.self_attn.o_proj.weight")
    windows = make_windows(
        ["some words " * 400], lm.tokenizer, PRESETS["paper"].override(context=64), 512, "llama"
    )
    with pytest.raises(TrialFailed, match=r"model\.layers\.0\.self_attn\.o_proj"):
        measure(lm.model, windows)


def test_a_model_without_a_chat_template_says_so(pocket):
    with pytest.raises(QsweepError, match=r"no chat template .*set eval\.chat_template=false"):
        pocket.chat([{"role": "user", "content": "hello"}])


# A choice that shares a token with the end of its prompt.


def fusing(lm, left, right):
    """Whether the tokenizer joins two texts into fewer tokens than both have."""
    return lm.encode(left + right)[: len(lm.encode(left))] != lm.encode(left)


def test_choices_that_fuse_with_the_prompt_are_all_cut_before_it(pocket):
    prompt, choices = "    return g(", [")", "x)", "x, y)"]
    assert fusing(pocket, prompt, choices[0]) and not fusing(pocket, prompt, choices[1])
    pocket.facts.pop("fused_contexts", None)
    pairs = pocket.pairs(prompt, choices)
    assert pocket.facts["fused_contexts"] == 1
    assert len({pair.context for pair in pairs}) == 1
    assert len(pairs[0].context) < len(pocket.encode(prompt))
    for pair, choice in zip(pairs, choices, strict=True):
        assert [*pair.context, *pair.continuation] == pocket.encode(prompt + choice)
        assert pair.fused == len("(")
        assert pocket.loglikelihoods([pair])[0].logprob < 0


def test_what_does_not_fuse_is_cut_where_the_context_ends(pocket):
    pocket.facts.pop("fused_contexts", None)
    for context, rest in (("one two", " three"), ("a =", " b"), ("one two ", "three"), ("f(", "x")):
        pair = pocket.pair(context, rest)
        before = len(pocket.encode(context.rstrip()))
        assert list(pair.context) == pocket.encode(context + rest)[:before]
        assert pair.fused == 0
    assert "fused_contexts" not in pocket.facts


@pytest.mark.parametrize(
    ("context", "rest"),
    [
        ("(", ")"),  # the context's only token is gone
        (" ", "word"),
        ("", "word"),
        ("", "<|endoftext|>"),
        ("the end", ""),
        ("日", "本"),
        ("é", "\u0301"),
        ("\n", "\n"),
        ("x.", "__slots__"),
    ],
)
def test_no_continuation_is_without_a_token(pocket, context, rest):
    pair = pocket.pair(context, rest)
    assert pair.context and pair.continuation
    assert pocket.loglikelihoods([pair])[0].logprob < 0
    whole = [*pair.context, *pair.continuation]
    assert pocket.tokenizer.decode(whole).endswith(rest or context)


def test_tokens_that_reach_across_a_blank(pocket):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "a": 1, " ": 2, "b": 3, "a ": 4, "a b": 5}
    merging = Tokenizer(BPE(vocab=vocabulary, merges=[("a", " "), ("a ", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, bos_token="<s>")
    lm = LanguageModel(pocket.model, tokenizer, 512)
    # "a b" is one token: what "a" is compared by begins before it, for both choices.
    assert lm.pairs("a", [" b", " a"]) == [Pair((0,), (5,), 1), Pair((0,), (4, 1), 1)]
    assert lm.pairs("b", [" b", " a"]) == [Pair((3,), (2, 3)), Pair((3,), (2, 1))]


def test_without_bos_and_eos_a_text_without_context_says_so(pocket_dir):
    lm = load(pocket_dir)
    lm.tokenizer.bos_token = lm.tokenizer.eos_token = lm.tokenizer.pad_token = None
    with pytest.raises(QsweepError, match="neither a BOS nor an EOS token"):
        lm.pair("", "word")
    lm.model.generation_config.eos_token_id = None
    # No token ends a text that has no end: least of all the first of the vocabulary.
    assert lm.generate([lm.encode("one two")], Sampling(4))[0]
    assert lm.pair("one", " two").continuation


def test_a_token_beyond_the_embedding_is_named(pocket_dir):
    lm = load(pocket_dir)
    lm.tokenizer.add_tokens(["<new>"])
    with pytest.raises(QsweepError, match=r"token 4096 \('<new>'\) lies beyond .* 4096 rows"):
        lm.pair("a <new> word", " b")


# Room for a prompt and for what follows it.


@pytest.mark.parametrize(
    ("prompt", "wanted", "context", "new"),
    [
        (100, 64, 512, 64),  # both fit
        (500, 64, 512, 64),  # the prompt loses its begin, as everywhere
        (100, 512, 512, 412),  # the prompt stays whole
        (400, 512, 512, 256),  # half for each
        (10, 10_000, 512, 502),
        (1, 8, 2, 1),
    ],
)
def test_a_prompt_has_half_of_the_context_at_least(prompt, wanted, context, new):
    assert new_tokens(prompt, wanted, context) == new


def test_no_room_at_all_names_both_numbers():
    with pytest.raises(QsweepError, match="context of 1 token leaves no room for 8"):
        new_tokens(1, 8, 1)


def test_more_new_tokens_than_the_context_holds_leave_the_prompt_whole(pocket_dir):
    lm = load(pocket_dir)
    lm.max_length = 48
    prompts = [lm.encode("def add(a, b):"), lm.encode("word " * 60), []]
    found = lm.generate(prompts, Sampling(4096))
    assert lm.facts["fewer_new_tokens"] == 3 and lm.facts["prompts_cut"] == 1
    ids = torch.tensor([prompts[0]])
    with torch.inference_mode():
        own = lm.model.generate(ids, max_new_tokens=48 - ids.shape[1], do_sample=False)
    assert found[0] == lm.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_text_that_loses_its_begin_keeps_the_bos_that_its_model_needs():
    assert last_tokens((0, 1, 2, 3, 4), 3) == (2, 3, 4)
    assert last_tokens((0, 1, 2, 3, 4), 3, (0,)) == (0, 3, 4)
    assert last_tokens((9, 1, 2, 3, 4), 3, (0,)) == (2, 3, 4)
    assert last_tokens((0, 1), 3, (0,)) == (0, 1)


def test_contexts_that_are_cut_are_counted(pocket_dir):
    lm = load(pocket_dir)
    lm.max_length = 16
    lm.loglikelihoods([Pair(tuple(range(1, 40)), (5, 6)), Pair((1, 2), (5,))])
    assert lm.facts["contexts_cut"] == 1
