"""Samples of whole documents and conversations: none is cut that fits, and nothing is padding."""

import itertools
import json

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.text.blend import Blend
from qsweep.text.calibrated import stored_calibration
from qsweep.text.chats import said
from qsweep.text.corpora import calibration_samples
from qsweep.text.corpus import CorpusConfig
from qsweep.text.packing import first_fit, packed_samples
from qsweep.text.stored import stored_text

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn.role }}|>\n{{ turn.content }}\n{% endfor %}<|end|>\n"
)


def chat(number, words):
    return [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": f"Answer {number} " + "and so on " * words},
    ]


CHATS = [chat(number, 3 * (number % 7)) for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer(pocket_dir):
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(pocket_dir)
    found.chat_template = TEMPLATE
    return found


def rendered(tokenizer, document):
    text = (
        f"{document}\n\n"
        if isinstance(document, str)
        else tokenizer.apply_chat_template(document, tokenize=False)
    )
    start = [] if not isinstance(document, str) else tokenizer("")["input_ids"]
    return [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]]


# the order of pieces


def packed(lengths, count, room):
    order = itertools.cycle(range(len(lengths)))
    return first_fit(order, lengths.__getitem__, count, room)


@pytest.mark.parametrize(
    ("lengths", "count", "room"),
    [
        ([3, 4, 5], 4, 10),
        ([10], 3, 10),
        ([25, 3], 5, 10),
        ([1], 2, 7),
        ([7, 7, 7, 2, 0, 11], 6, 12),
    ],
)
def test_samples_are_full_and_only_their_last_piece_is_cut(lengths, count, room):
    found = packed(lengths, count, room)
    assert len(found) == count
    for sample in found:
        assert sum(length for _, length in sample) == room
        assert all(length == lengths[number] for number, length in sample[:-1])


def test_what_fits_is_put_whole_into_the_first_sample_with_room():
    # 6 and 3 fill the first but for one token, 5 begins the second and 4 goes beside it; 9 fits
    # nowhere and fills the first
    assert packed([6, 5, 3, 4, 9], 2, 10) == [[(0, 6), (2, 3), (4, 1)], [(1, 5), (3, 4), (0, 1)]]


# texts


def test_conversations_stay_whole_in_the_models_template(tokenizer):
    room = 120
    made = packed_samples(CHATS, tokenizer, 8, room, seed=0)
    assert [len(sample) for sample in made.samples] == [room] * 8
    whole = {tuple(rendered(tokenizer, one)) for one in CHATS}
    assert max(map(len, whole)) < room
    seen = 0
    for sample in made.samples:
        rest = tuple(sample)
        while fitting := next((one for one in whole if rest[: len(one)] == one), None):
            rest, seen = rest[len(fitting) :], seen + 1
        # what is left is the begin of another, and of nothing that would have fitted
        assert not rest or any(one[: len(rest)] == rest and len(one) > len(rest) for one in whole)
    assert seen >= 8


def test_there_is_no_padding_and_every_token_is_the_texts(tokenizer):
    made = packed_samples(CHATS, tokenizer, 8, 120, seed=0)
    end = tokenizer("<|end|>\n", add_special_tokens=False)["input_ids"]
    assert end[0] != tokenizer.pad_token_id
    assert all(tokenizer.pad_token_id not in sample for sample in made.samples)
    assert made.distinct <= min(8 * 120, sum(len(rendered(tokenizer, one)) for one in CHATS))


def test_the_seed_decides_the_order(tokenizer):
    first, again, other = (
        packed_samples(CHATS, tokenizer, 4, 100, seed=seed).samples for seed in (0, 0, 1)
    )
    assert first == again != other


def test_one_that_is_longer_than_a_sample_begins_it(tokenizer):
    long = chat(0, 200)
    made = packed_samples([long], tokenizer, 2, 64, seed=0)
    assert made.samples == [rendered(tokenizer, long)[:64]] * 2 and made.distinct == 64


def test_documents_are_packed_whole_too(tokenizer):
    texts = [f"Document {number}. " + "More of it. " * (number % 5) for number in range(40)]
    made = packed_samples([*texts, "", " \n"], tokenizer, 5, 90, seed=0)
    assert all(len(sample) == 90 for sample in made.samples)
    for told in map(tokenizer.decode, made.samples):
        *whole, cut = told.split("\n\n")
        assert whole and set(whole) <= set(texts)
        assert any(text.startswith(cut) for text in texts)


def test_a_gemmas_documents_each_begin_with_bos(tokenizer):
    made = packed_samples(["Some text. " * 9] * 4, tokenizer, 3, 60, seed=0, model_type="gemma2")
    assert all(sample[0] == tokenizer.bos_token_id for sample in made.samples)


def test_a_short_text_is_gone_through_again_and_says_so(tokenizer):
    made = packed_samples(CHATS[:3], tokenizer, 20, 60, seed=0)
    total = sum(len(rendered(tokenizer, one)) for one in CHATS[:3])
    assert len(made.samples) == 20 and made.distinct <= total < 20 * 60


def test_too_little_text_is_refused(tokenizer):
    total = sum(len(rendered(tokenizer, one)) for one in CHATS[:2])
    with pytest.raises(ConfigError, match=f"has {total} tokens, one sample takes {total + 1}"):
        packed_samples(CHATS[:2], tokenizer, 1, total + 1, seed=0)
    with pytest.raises(ConfigError, match="repeat it more than 1000 times"):
        packed_samples(["Few words."], tokenizer, 100_000, 5, seed=0)


def test_what_the_template_refuses_is_left_out_and_told(tokenizer, capsys, monkeypatch):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", strict + TEMPLATE)
    system = [{"role": "system", "content": "Be brief."}]
    mixed = [system + one if n % 2 else one for n, one in enumerate(CHATS)]
    made = packed_samples(mixed, tokenizer, 4, 100, seed=0)
    assert "Be brief" not in "".join(map(tokenizer.decode, made.samples))
    told = capsys.readouterr().err
    assert "conversations are left out" in told and "No system!" in told
    refused = [system + one for one in CHATS]
    with pytest.raises(
        ConfigError, match=r"takes none of the text's 60 conversations \(No system!"
    ):
        packed_samples(refused, tokenizer, 4, 100, seed=0)
    assert len(packed_samples(list(map(said, refused)), tokenizer, 4, 100, seed=0).samples) == 4


def test_a_template_that_tells_the_date_tells_the_same_one_every_day(tokenizer, monkeypatch):
    dated = "Today is {{ strftime_now('%d %b %Y') }}. "
    monkeypatch.setattr(tokenizer, "chat_template", dated + TEMPLATE)
    (sample, *_) = packed_samples(CHATS, tokenizer, 1, 60, seed=0).samples
    assert "Today is 26 Jul 2024." in tokenizer.decode(sample)


# from files, through the store


def corpus(path, **more):
    return CorpusConfig("mine", "file", path=str(path), field="messages", **more)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": one}) for one in CHATS))
    return path


def test_messages_are_kept_where_they_are_wanted_and_joined_where_not(file, tmp_path):
    store = Store(tmp_path / "store")
    plain, turns = stored_text(corpus(file), store), stored_text(corpus(file), store, turns=True)
    assert turns.turns() == CHATS and turns.conversations == 60
    assert plain.documents() == turns.documents() and plain.conversations == 0
    assert plain.fingerprint != turns.fingerprint
    assert plain.turns()[0] == f"Question 0?\n\n{CHATS[0][1]['content']}"


def test_sharegpt_and_parts_and_messages_without_a_role(tmp_path):
    rows = [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}]}],
        [*CHATS[0][:1], {"role": "assistant", "content": None, "tool_calls": []}],
        ["no", "roles"],
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    assert stored_text(corpus(path), Store(tmp_path / "s"), turns=True).turns() == [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": "Look:"}],
        CHATS[0][:1],
        "no\n\nroles",
    ]


def test_a_limit_in_bytes_leaves_whole_conversations_and_a_text(file, tmp_path):
    long = sum(len(message["content"]) for message in CHATS[0]) + 2
    limited = corpus(file, max_bytes=long + 5)
    first, second = stored_text(limited, Store(tmp_path / "s"), turns=True).turns()
    assert (first, second) == (CHATS[0], "Quest")


def test_a_text_without_conversations_cannot_be_packed_as_such(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "No chat at all. " * 50, "messages": CHATS[0]}))
    store = Store(tmp_path / "store")

    def found(packing, **more):
        blend = Blend((CorpusConfig("rows", "file", path=str(path), **more),))
        return stored_calibration(blend, packing, store)

    with pytest.raises(ConfigError, match=r"rows holds no lists of messages.*packing=documents"):
        found("conversations")
    assert found("documents").packing == "documents"
    assert found("conversations", field="messages").parts[0].text.turns() == [CHATS[0]]


def test_beside_conversations_other_texts_are_packed_as_documents(file, tmp_path, tokenizer):
    path = tmp_path / "plain.txt"
    path.write_text("No chat at all. " * 50)
    texts = (corpus(file), CorpusConfig("plain", "file", path=str(path)))
    both = stored_calibration(Blend(texts, (0.5, 0.5)), "conversations", Store(tmp_path / "store"))
    told = [tokenizer.decode(one) for one in both.samples(tokenizer, 8, 60, 0).samples]
    assert sum(one.startswith("<|user|>") for one in told) == 4
    assert sum(one.startswith("No chat") for one in told) == 4


def test_a_stream_is_what_it_was(file, tmp_path, tokenizer):
    plain = stored_calibration(Blend((corpus(file),)), "stream", Store(tmp_path / "store"))
    documents = stored_text(corpus(file), Store(tmp_path / "store")).documents()
    samples = calibration_samples(documents, tokenizer, 5, 60, 3)
    assert plain.samples(tokenizer, 5, 60, 3) == samples
    assert plain.identity == {"text": plain.parts[0].text.fingerprint}
