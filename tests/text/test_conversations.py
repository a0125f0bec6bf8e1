"""Conversations: which tokens are the assistant's, by templates of several kinds."""

import json

import pytest
import torch

from qsweep.base.errors import ConfigError
from qsweep.text.chat_template import ChatTemplate
from qsweep.text.conversations import conversation_windows, to_document
from qsweep.text.corpora import corpus_identity, load_documents
from qsweep.text.corpus import CorpusConfig
from qsweep.text.windows import CONVERSATIONS

USER, ANSWER = "What is two and two?", "It is four."
TALK = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And three and three?"},
    {"role": "assistant", "content": "Six."},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: the last answer is rendered with its (empty) reasoning, those before it without.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek-R1's: the turn is opened with reasoning, which a given answer has not.
OPENED = CHATML.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
)
COUNTING = "{{ messages | length }} messages" + CHATML


@pytest.fixture(scope="module")
def plain(pocket_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pocket_dir)


@pytest.fixture
def tokenizer(pocket_dir):
    """A tokenizer of its own for each test, whose turns end with tokens that are special."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(pocket_dir)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


def windows(tokenizer, *talks, template=None, context=512, **more):
    if template is not None:
        tokenizer.chat_template = template
    documents = [to_document(talk, "here") for talk in talks]
    preset = CONVERSATIONS.override(context=context, **more)
    return conversation_windows(documents, tokenizer, preset, 1024)


def scored(found, tokenizer):
    """The texts of each window's answers."""
    texts = []
    for ids, mask in zip(found.ids, found.mask, strict=True):
        edges = torch.cat([torch.tensor([0]), mask.int(), torch.tensor([0])]).diff()
        begins, ends = edges.eq(1).nonzero()[:, 0], edges.eq(-1).nonzero()[:, 0]
        texts.append([tokenizer.decode(ids[a:b]) for a, b in zip(begins, ends, strict=True)])
    return texts


def test_a_model_without_a_template_reads_the_plain_form(plain):
    found = windows(plain, TALK, TALK[:2])
    assert scored(found, plain) == [[f" {ANSWER}", " Six."], [f" {ANSWER}"]]
    assert plain.decode(found.ids[1][: found.lengths[1]]) == f"User: {USER}\n\nAssistant: {ANSWER}"
    facts = found.facts()
    assert facts["template"] == "plain" and facts["conversations"] == 2
    assert facts["preset"] == "conversations" and facts["windows"] == 2
    assert facts["tokens_scored"] == int(found.mask.sum()) == int(found.counts.sum())
    assert found.first_scored.tolist() == [m.nonzero()[0, 0] for m in found.mask]
    assert found.lengths.tolist() == [m.nonzero()[-1, 0] + 1 for m in found.mask]


def test_what_is_asked_counts_for_nothing_but_what_it_does_to_answers(plain):
    longer = [{"role": "user", "content": f"Please tell me: {USER}"}, TALK[1]]
    found = windows(plain, TALK[:2], longer)
    assert found.counts[0] == found.counts[1] and found.lengths[0] < found.lengths[1]
    assert found.ids[0][found.mask[0]].tolist() == found.ids[1][found.mask[1]].tolist()


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_an_answer_is_what_the_model_would_write_with_the_end_of_its_turn(template, tokenizer):
    found = windows(tokenizer, TALK, template=template)
    assert scored(found, tokenizer) == [[f"{ANSWER}<|im_end|>", "Six.<|im_end|>"]]
    assert found.facts()["template"] == "the model's own"
    # nothing follows the last answer
    assert tokenizer.decode(found.ids[0]).endswith("Six.<|im_end|>")


def test_a_template_that_leaves_reasoning_out_of_earlier_answers_gives_a_window_for_each(tokenizer):
    found = windows(tokenizer, TALK, TALK[:2], template=THINKING)
    reason = "<think>\n\n</think>\n\n"
    assert scored(found, tokenizer) == [
        [f"{reason}{ANSWER}<|im_end|>"], [f"{reason}Six.<|im_end|>"], [f"{reason}{ANSWER}<|im_end|>"]
    ]  # fmt: skip
    assert reason not in tokenizer.decode(found.ids[1][: found.first_scored[1]])
    assert found.facts()["answers_apart"] == 1 and found.facts()["conversations"] == 2


def test_a_turn_that_is_opened_otherwise_than_it_was_given_begins_where_they_part(tokenizer):
    found = windows(tokenizer, TALK, template=OPENED)
    assert scored(found, tokenizer) == [[f"{ANSWER}<|im_end|>", "Six.<|im_end|>"]]


def test_a_template_that_keeps_to_no_begin_is_refused_in_one_line(tokenizer):
    with pytest.raises(ConfigError, match="does not tell what the assistant says") as error:
        windows(tokenizer, TALK, template=COUNTING)
    assert "\n" not in str(error.value)
    # Both ways that the line names are open.
    marked = COUNTING.replace(CHATML, MARKED)
    assert scored(windows(tokenizer, TALK, template=marked), tokenizer)[0][0].startswith(ANSWER)


def test_a_template_that_marks_answers_but_none_of_these_is_compared(tokenizer):
    unused = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    found = windows(tokenizer, TALK, template=unused)
    assert scored(found, tokenizer) == [[f"{ANSWER}<|im_end|>", "Six.<|im_end|>"]]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_what_nobody_asked_for_is_no_answer(template, tokenizer):
    greeting = {"role": "assistant", "content": "Hello, what is it?"}
    found = windows(tokenizer, [greeting, *TALK], [greeting, greeting, *TALK], template=template)
    assert scored(found, tokenizer) == [[f"{ANSWER}<|im_end|>", "Six.<|im_end|>"]] * 2
    assert "Hello, what is it?" in tokenizer.decode(found.ids[0][: found.first_scored[0]])


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(tokenizer):
    dated = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
    found = windows(tokenizer, TALK, template=dated)
    assert tokenizer.decode(found.ids[0]).startswith("26 July 2024\n")


def test_conversations_without_an_answer_are_left_out_and_counted(plain):
    silent = [TALK[0], {"role": "assistant", "content": "  "}]
    found = windows(plain, [], TALK[:1], TALK, silent)
    assert len(found.ids) == 1
    assert found.facts()["conversations_left_out"] == 3 and found.facts()["conversations"] == 1
    with pytest.raises(ConfigError, match=r"^no conversation has an answer that could be scored$"):
        windows(plain, [], TALK[:1])


def test_a_conversation_that_the_template_refuses_is_left_out_and_the_reason_is_told(tokenizer):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    system = [{"role": "system", "content": "Be brief."}, *TALK]
    found = windows(tokenizer, system, TALK, template=strict + CHATML)
    assert len(found.ids) == 1 and found.facts()["conversations_left_out"] == 1
    with pytest.raises(ConfigError, match=r"scored \(the chat template refuses: no system\)"):
        windows(tokenizer, system, template=strict + CHATML)


def test_what_does_not_fit_loses_its_end(plain):
    whole = windows(plain, TALK)
    cut = windows(plain, TALK, context=int(whole.first_scored[0]) + 2)
    assert cut.tokens_scored == 2 and cut.facts()["cut"] == 1
    assert torch.equal(cut.ids[0], whole.ids[0][: cut.ids.shape[1]])
    with pytest.raises(ConfigError, match="no conversation has an answer"):
        windows(plain, TALK, context=int(whole.first_scored[0]))


def test_each_begins_with_bos_where_the_tokenizer_has_one_to_add(plain):
    documents = [to_document(TALK, "here")]
    found = conversation_windows(documents, plain, CONVERSATIONS, 1024, bos="stream")
    without = windows(plain, TALK)
    assert found.bos == "window" and without.bos == "none"
    assert found.ids[0].tolist() == [plain.bos_token_id, *without.ids[0].tolist()]
    assert found.mask[0, 1:].tolist() == without.mask[0].tolist()
    # One that the template writes itself is not written twice.
    start = without.ids[0, :1].tolist()
    assert ChatTemplate(plain, start).tokens(TALK) == ChatTemplate(plain).tokens(TALK)


def test_the_first_windows_alone(plain):
    assert len(windows(plain, TALK, TALK, TALK, max_windows=2).ids) == 2


# documents


def test_messages_have_one_spelling():
    share = [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": USER}, {"type": "image"}, None, 7]},
        {"role": "assistant", "content": ANSWER, "name": "x"},
    ]
    assert to_document(share, "h") == to_document(parts, "h") == to_document(TALK[:2], "h")
    called = to_document([{"role": "assistant", "content": None, "tool_calls": []}], "h")
    assert json.loads(called) == [{"role": "assistant", "content": ""}]
    # OpenAI's API allows for no content at all where something is called
    for calls in ("tool_calls", "function_call"):
        assert to_document([{"role": "assistant", calls: [{"id": "a"}]}], "h") == called
    with pytest.raises(ConfigError, match="a message without content"):
        to_document([{"role": "assistant", "tool_calls": []}], "h")


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ("text", "here: holds no list of messages but str; corpus.field=NAME"),
        (["hello"], "here: a message that is no object"),
        ([{"role": "narrator", "content": "x"}], "here: a message of role 'narrator'; there are"),
        ([{"role": "user", "content": 7}], "here: a message whose content is int"),
    ],
)
def test_what_is_no_conversation_is_told_in_one_line(messages, line):
    with pytest.raises(ConfigError, match=line) as error:
        to_document(messages, "here")
    assert "\n" not in str(error.value)


def test_users_files_hold_conversations(tmp_path):
    rows = [{"messages": TALK}, {"messages": TALK[:2]}]
    lines = tmp_path / "talk.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "talk.parquet"
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    wanted = [to_document(row["messages"], "here") for row in rows]
    for path in (lines, table):
        config = CorpusConfig("t", "file", path=str(path), field="messages", assistant_only=True)
        assert load_documents(config) == wanted
        # and the same file is a text as ever, with a key as ever
        text = CorpusConfig("t", "file", path=str(path), field="messages")
        assert load_documents(text)[1] == f"{USER}\n\n{ANSWER}"
        assert "assistant_only" not in corpus_identity(text)
        assert corpus_identity(config) == {**corpus_identity(text), "assistant_only": True}


def test_files_without_conversations(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("words")
    with pytest.raises(ConfigError, match=r"a\.txt: plain text, and assistant_only wants"):
        load_documents(CorpusConfig("t", "file", path=str(text), assistant_only=True))
    with pytest.raises(
        ConfigError, match="max_bytes would cut a conversation in two; give max_doc"
    ):
        CorpusConfig("t", "chat", assistant_only=True, max_bytes=9)
    first = CorpusConfig("t", "chat", assistant_only=True, max_documents=3)
    assert len(load_documents(first)) == 3


# our own


def test_the_conversations_of_this_package(plain):
    documents = load_documents(CorpusConfig("chat", "chat", assistant_only=True))
    talks = [json.loads(document) for document in documents]
    assert len(talks) >= 60 and len(set(documents)) == len(documents)
    for talk in talks:
        assert [one["role"] for one in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert len(talk) >= 4 and all(one["content"].strip() for one in talk)
    words = " ".join(documents)
    assert "Artikel oder Pronomen" in words and "光合作用" in words and "```python" in words
    found = conversation_windows(documents, plain, CONVERSATIONS, 1024)
    assert len(found.ids) == len(talks) and "cut" not in found.facts()
    answers = sum(len(one["content"]) for talk in talks for one in talk[1::2])
    everything = sum(len(one["content"]) for talk in talks for one in talk)
    share = found.tokens_scored / int(found.lengths.sum())
    assert share == pytest.approx(answers / everything, abs=0.15)
