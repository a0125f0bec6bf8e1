"""Rows that come and go give every prompt the answer that it gets alone."""

import pytest
import torch

from qsweep.base.errors import TrialFailed
from qsweep.tasks import batches, decoding, generation
from qsweep.tasks.drawing import draw, uniforms
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Ask, Sampling

DRAWN = Sampling(0, (), temperature=0.8, top_p=0.9, top_k=0)
TEXTS = ("def add(a, b):", "one", "the value of the list is", "class A:\n", "import os", "x = 1")


def load(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval().requires_grad_(False)
    return LanguageModel(model, AutoTokenizer.from_pretrained(path), 512)


@pytest.fixture(scope="module")
def pocket(pocket_dir):
    return load(pocket_dir)


def asks_of(lm, new=(9, 30, 4, 17, 1, 24), seed=None):
    prompts = [tuple(lm.encode(text)) for text in TEXTS]
    return [
        Ask(prompt, count, seed and f"{seed} {n}")
        for n, (prompt, count) in enumerate(zip(prompts, new, strict=True))
    ]


def by_rows(lm, asks, sampling, size):
    found = {}
    order = sorted(range(len(asks)), key=lambda n: -len(asks[n].prompt))
    with torch.inference_mode():
        decoding.decode(
            lm,
            sampling,
            [asks[n] for n in order],
            size,
            lambda n, one: found.update({order[n]: one}),
        )
    return [found[n] for n in range(len(asks))]


def alone(lm, asks, sampling):
    with torch.inference_mode():
        return [batches.decode_batch(lm, [ask], sampling, cached=True)[0] for ask in asks]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 50])
def test_greedy_answers_are_those_of_transformers_one_by_one(pocket, size):
    asks = asks_of(pocket)
    assert by_rows(pocket, asks, Sampling(0), size) == alone(pocket, asks, Sampling(0))


@pytest.mark.parametrize(
    "architecture", ["qwen3_moe", "gpt_neox", "deepseek_v2", "falcon", "gpt_oss"]
)
def test_other_attention_bears_rows_that_come_and_go(tiny_model, architecture):
    lm = load(tiny_model(architecture))
    asks = asks_of(lm)
    assert by_rows(lm, asks, Sampling(0), 2) == alone(lm, asks, Sampling(0))


def test_a_window_is_the_rows_own(tiny_model):
    from transformers import AutoModelForCausalLM

    lm = load(tiny_model("gemma3_text"))
    config = lm.model.config
    config.sliding_window = 12
    torch.manual_seed(0)
    lm.model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    asks = asks_of(lm, (40, 33, 25, 40, 9, 28))
    assert by_rows(lm, asks, Sampling(0), 3) == alone(lm, asks, Sampling(0))


def test_buffers_grow_and_columns_that_nobody_needs_are_dropped(pocket, monkeypatch):
    from qsweep.tasks import cache_rows

    monkeypatch.setattr(cache_rows, "_MORE", 3)
    asks = asks_of(pocket, (60, 9, 31, 17, 44, 24)) * 2
    assert by_rows(pocket, asks, Sampling(0), 2) == alone(pocket, asks, Sampling(0))


def test_a_row_that_is_done_makes_room_at_once(pocket, monkeypatch):
    from qsweep.tasks.cache_rows import Rows

    steps = []
    original = Rows.step
    monkeypatch.setattr(
        Rows, "step", lambda rows, tokens: steps.append(len(tokens)) or original(rows, tokens)
    )
    asks = asks_of(pocket, (40, 5, 5, 5, 5, 5))
    by_rows(pocket, asks, Sampling(0), 2)
    # Five short answers pass by beside the long one; batches of two would take 39 + 4 + 4 steps.
    assert len(steps) == 39 and sum(steps) == sum(ask.new - 1 for ask in asks)


def test_a_prompt_is_read_once_for_all_its_answers(pocket, monkeypatch):
    from qsweep.tasks import cache_rows

    read = []
    original = cache_rows.read_prompt
    monkeypatch.setattr(
        cache_rows, "read_prompt", lambda *args: read.append(args[1]) or original(*args)
    )
    first, second = asks_of(pocket)[:2]
    asks = [Ask(one.prompt, 6, f"{n}") for one in (first, second) for n in range(4)]
    by_rows(pocket, asks, DRAWN, 3)
    assert sorted(map(len, read)) == sorted(len(one.prompt) for one in (first, second))


@pytest.mark.parametrize("architecture", ["llama", "lfm2", "mamba"])
def test_what_is_drawn_depends_on_no_batch(tiny_model, architecture):
    lm = load(tiny_model(architecture))
    asks = [*asks_of(lm, seed="a"), *asks_of(lm)]
    together = generation.answers(lm, asks, DRAWN, lambda _: None)
    lm.batch_size = 2
    assert generation.answers(lm, asks[::-1], DRAWN, lambda _: None)[::-1] == together
    assert together == alone(lm, asks, DRAWN)
    assert together[1].tokens != together[7].tokens  # drawn, and greedy


def test_another_seed_draws_others_and_the_same_the_same(pocket):
    one, same, other = (
        by_rows(pocket, asks_of(pocket, seed=seed), DRAWN, 6) for seed in ("a", "a", "b")
    )
    assert one == same and one != other


def test_the_token_that_ends_an_answer_belongs_to_it(pocket):
    asks = asks_of(pocket)
    plain = by_rows(pocket, asks, Sampling(0), 6)
    end = plain[1].tokens[5]
    pocket.model.generation_config.eos_token_id = end
    try:
        ended = by_rows(pocket, asks, Sampling(0), 6)
        assert ended == alone(pocket, asks, Sampling(0))
    finally:
        pocket.model.generation_config.eos_token_id = pocket.tokenizer.eos_token_id
    at = plain[1].tokens.index(end)
    assert ended[1].tokens == plain[1].tokens[: at + 1] and ended[1].ended
    assert not plain[1].ended


def test_a_stop_text_ends_both_ways_alike(pocket):
    asks = asks_of(pocket)
    text = pocket.tokenizer.decode(by_rows(pocket, asks, Sampling(0), 6)[1].tokens)
    sampling = Sampling(0, (text[8:11],))
    with torch.inference_mode():
        batch = generation._in_batches
        found = {}
        batch(pocket, sampling, True, True, asks, 6, lambda n, one: found.update({n: one}))
    assert by_rows(pocket, asks, sampling, 3) == [found[n] for n in range(6)]
    assert found[1].ended and len(found[1].tokens) < asks[1].new


def test_of_a_long_answer_only_its_last_tokens_are_looked_at_for_a_stop_text(pocket, monkeypatch):
    tokens = pocket.tokenizer("x = 1\n" * 400)["input_ids"]
    seen = []
    decode = pocket.tokenizer.batch_decode
    monkeypatch.setattr(
        pocket.tokenizer,
        "batch_decode",
        lambda rows: seen.append(max(map(len, rows))) or decode(rows),
    )
    without, stops = (batches.StopTexts(pocket.tokenizer, until) for until in ((), ("\nx = 2",)))
    assert batches._answer(tokens, set(), without).tokens == tuple(tokens) and not seen
    assert not batches._answer(tokens, set(), stops).ended and seen == [stops.tail]
    stop = pocket.tokenizer("x = 2")["input_ids"]
    found = batches._answer([*tokens, *stop, *tokens], set(), stops)
    assert found.ended and len(found.tokens) == len(tokens) + len(stop)
    assert batches._answer(tokens, {tokens[3]}, stops).tokens == tuple(tokens[:4])


def test_a_cache_that_is_not_ours_is_noticed(pocket, monkeypatch):
    from qsweep.tasks.cache_rows import Rows

    original = Rows.step

    def of_other_positions(rows, tokens):
        rows._begins += 1
        return original(rows, tokens)

    monkeypatch.setattr(Rows, "step", of_other_positions)
    way, _ = generation._way(pocket, asks_of(pocket), Sampling(0), 4)
    assert way.func is generation._in_batches
    monkeypatch.undo()
    way, size = generation._way(pocket, asks_of(pocket), Sampling(0), 4)
    assert way.func is decoding.decode and size == 4


def test_memory_that_does_not_suffice_halves_the_rows(pocket, monkeypatch):
    asks, sizes = asks_of(pocket), []
    original = decoding.decode

    def short(lm, sampling, of, size, done):
        sizes.append(size)
        if size > 1:
            original(lm, sampling, of[:2], size, done)
            raise torch.OutOfMemoryError("no memory")
        original(lm, sampling, of, size, done)

    monkeypatch.setattr(decoding, "decode", short)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    pocket.batch_size = 4
    try:
        found = generation.answers(pocket, asks, Sampling(0), lambda _: None)
    finally:
        pocket.batch_size = None
    assert sizes == [4, 2, 1] and found == alone(pocket, asks, Sampling(0))


def test_not_even_one_row_is_an_error(pocket, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(batches, "decode_batch", none)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(TrialFailed, match="out of memory on cpu while generating from one prompt"):
        generation.answers(pocket, asks_of(pocket)[:1], Sampling(0), lambda _: None)


# Drawing.


def shares(logits, sampling, count=4000):
    numbers = torch.tensor(uniforms("shares", count))
    tokens = draw(torch.tensor([logits]).expand(count, -1), numbers, sampling)
    return torch.bincount(tokens, minlength=len(logits)) / count


def test_tokens_are_drawn_by_their_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().tolist()
    found = shares(logits, Sampling(0))
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)
    # At temperature 0.5 probabilities are squared.
    squares = [n / 30 for n in (1, 4, 9, 16)]
    assert shares(logits, Sampling(0, temperature=0.5)).tolist() == pytest.approx(squares, abs=0.03)


def test_top_p_keeps_the_smallest_set_and_top_k_the_likeliest():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().tolist()
    assert shares(logits, Sampling(0, top_p=0.65)).tolist() == pytest.approx(
        [0, 0, 3 / 7, 4 / 7], abs=0.03
    )
    assert shares(logits, Sampling(0, top_k=1)).tolist() == [0, 0, 0, 1]
    both = shares(logits, Sampling(0, top_k=3, top_p=0.5))  # 4/9 is less than a half, 7/9 more
    assert both.tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7], abs=0.03)


def test_draws_follow_transformers_own_filters():
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    torch.manual_seed(1)
    logits = torch.randn(1, 300) * 2
    for top_k, top_p in ((0, 0.9), (20, 1.0), (50, 0.7)):
        filters = [TemperatureLogitsWarper(0.7)]
        filters += [TopKLogitsWarper(top_k)] if top_k else []
        filters += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        theirs = LogitsProcessorList(filters)(None, logits.clone()).softmax(-1)[0]
        ours = shares(
            logits[0].tolist(), Sampling(0, temperature=0.7, top_k=top_k, top_p=top_p), 20_000
        )
        assert set(ours.nonzero().flatten().tolist()) <= set(theirs.nonzero().flatten().tolist())
        assert float((ours - theirs).abs().sum()) < 0.1


def test_a_flat_distribution_is_drawn_from_the_whole_vocabulary():
    found = shares([0.0] * 1000, Sampling(0, top_p=0.999), 20_000)
    assert (found > 0).sum() > 990


def test_numbers_are_the_same_everywhere():
    assert uniforms("a", 3).tolist() == uniforms("a", 5).tolist()[:3]
    assert uniforms("a", 3).tolist() == [
        0.0847185062618222,
        0.10782296944791814,
        0.7323048923892325,
    ]
