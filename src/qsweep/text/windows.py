"""From text to the windows of token ids that are measured, by the presets of the protocol.

A window is one sequence that the model sees. Which of its tokens are *scored* (predicted from what
precedes them in the window) is what the presets differ in; docs/protocol.md describes them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from qsweep.base.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Bos = Literal["auto", "none", "stream", "window"]
Scoring = Literal["all", "second half", "new", "answers"]

# Architectures whose predictions fall apart in a window that does not begin with BOS.
_BOS_IN_EVERY_WINDOW = "gemma"


@dataclass(frozen=True)
class Preset:
    """A way to cut a text into windows.

    Attributes:
        name: As in ``eval.presets``.
        context: Tokens per window; less for a model whose limit is lower.
        joiner: What stands between two documents.
        scoring: ``all`` tokens but a window's first, those of its ``second half``, the ``new``
            ones that no earlier window held, or the ``answers`` of a conversation.
        stride: Tokens from one window's begin to the next one's; None: windows do not overlap.
        max_windows: Only so many of the first windows; None: all.
        overrides: What differs from the preset of that name.
    """

    name: str
    context: int
    joiner: str = "\n\n"
    scoring: Scoring = "all"
    stride: int | None = None
    max_windows: int | None = None
    overrides: dict[str, int] = field(default_factory=dict)

    def override(
        self,
        context: int | None = None,
        stride: int | None = None,
        max_windows: int | None = None,
    ) -> "Preset":
        """The preset with some values replaced; ``stride`` only concerns one that has a stride."""
        given = {
            "context": context,
            "stride": stride if self.stride is not None else None,
            "max_windows": max_windows,
        }
        changes = {k: v for k, v in given.items() if v is not None and v != getattr(self, k)}
        for name, value in changes.items():
            if value < (4 if name == "context" else 1):
                raise ConfigError(f"eval.{name}={value}: too small to score anything")
        return replace(self, **changes, overrides={**self.overrides, **changes})  # type: ignore[arg-type]


PRESETS = {
    "paper": Preset("paper", context=2048),
    "llamacpp": Preset("llamacpp", context=512, joiner="", scoring="second half"),
    "strided": Preset("strided", context=1024, stride=512, scoring="new"),
}
# What a text of conversations is cut by, whichever presets are chosen for others.
CONVERSATIONS = Preset("conversations", context=2048, scoring="answers")
# What ``paper`` was called first, after the GPTQ paper; it remains so in the keys of measurements,
# which would all be made anew under another name.
PRESET_ALIASES = {"gptq": "paper"}
_NAMES_IN_KEYS = {name: alias for alias, name in PRESET_ALIASES.items()}


def preset_name(name: str) -> str:
    """A preset's name, also where it is called by an alias: in a configuration, in an old record."""
    return PRESET_ALIASES.get(name, name)


def preset_key(name: str) -> str:
    """What a preset is called in keys of measurements."""
    return _NAMES_IN_KEYS.get(name, name)


def with_preset_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration whose ``eval.presets`` are called by their names, each once."""
    evaluation = config.get("eval")
    presets = evaluation.get("presets") if isinstance(evaluation, Mapping) else None
    if not isinstance(presets, (list, tuple)) or not all(isinstance(n, str) for n in presets):
        return dict(config)
    names = list(dict.fromkeys(map(preset_name, presets)))
    return {**config, "eval": {**evaluation, "presets": names}}  # type: ignore[dict-item]


@dataclass(frozen=True, eq=False)
class Windows:
    """Token ids to run, and which of them are scored.

    In window w the tokens at positions first_scored[w] .. lengths[w] - 1 are scored, each predicted
    from those before it; of conversations only those among them that ``mask`` names.

    Attributes:
        ids: Token ids, int64 [windows, context]. The strided preset's last window, and all but the
            longest conversation, are filled up at their right with zeros, which nothing before them
            can see.
        first_scored: int64 [windows], at least 1.
        lengths: Tokens without that filling, int64 [windows].
        preset: What they were cut by, its context lowered to the model's limit.
        bos: ``none``; ``stream``, once at the text's begin; ``window``, before each window's text;
            ``overwrite``, in place of each window's first token.
        mask: Which tokens are scored, bool [windows, context], where they do not lie together; at
            least one in each window.
        notes: What else is to be told of them.
        numbers: Where each stands in the text, from 0; None: these are all of it, in its order.
    """

    ids: "Tensor"
    first_scored: "Tensor"
    lengths: "Tensor"
    preset: Preset
    bos: str
    mask: "Tensor | None" = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[int, ...] | None = None

    def number_of(self, window: int) -> int:
        """Where a window stands in the text, from 0."""
        return window if self.numbers is None else self.numbers[window]

    @property
    def scored(self) -> "Tensor":
        """Which tokens are scored, bool [windows, context]."""
        import torch

        if self.mask is not None:
            return self.mask
        position = torch.arange(self.ids.shape[1])
        return (position >= self.first_scored[:, None]) & (position < self.lengths[:, None])

    @property
    def positions(self) -> "Tensor":
        """Where each scored token stands in its window, from 0: int64 [tokens]."""
        return self.scored.nonzero()[:, 1]

    @property
    def counts(self) -> "Tensor":
        """Scored tokens per window, int64 [windows]."""
        return self.lengths - self.first_scored if self.mask is None else self.mask.sum(1)

    @property
    def tokens_scored(self) -> int:
        """Scored tokens of all windows."""
        return int(self.counts.sum())

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and of what is scored: 32 hexadecimal digits."""
        digest = hashlib.sha256()
        tensors = (self.ids, self.first_scored, self.lengths)
        for tensor in tensors if self.mask is None else (*tensors, self.mask):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def select(self, chosen: Sequence[int]) -> "Windows":
        """Only some of the windows, by number."""
        at = [int(window) for window in chosen]
        return replace(
            self,
            ids=self.ids[at],
            first_scored=self.first_scored[at],
            lengths=self.lengths[at],
            mask=None if self.mask is None else self.mask[at],
            numbers=tuple(map(self.number_of, at)),
        )

    def facts(self) -> dict[str, Any]:
        """What a measurement records of its windows."""
        facts = {
            "preset": self.preset.name,
            "overrides": dict(self.preset.overrides),
            "context": int(self.ids.shape[1]),
            "windows": len(self.ids),
            "tokens_scored": self.tokens_scored,
            "bos": self.bos,
            "fingerprint": self.fingerprint,
            **self.notes,
        }
        return facts if self.preset.stride is None else {**facts, "stride": self.preset.stride}


def make_windows(
    documents: Sequence[str],
    tokenizer: Any,
    preset: Preset,
    max_length: int,
    model_type: str = "",
    bos: Bos = "auto",
) -> Windows:
    """Tokenize documents once and cut them into windows.

    Args:
        documents: The text.
        tokenizer: The reference model's own transformers tokenizer.
        preset: One of :data:`PRESETS`, perhaps overridden.
        max_length: The model's limit, in tokens.
        model_type: As in the model's ``config.json``; tells ``auto`` that it is a Gemma.
        bos: ``auto``: once per stream if the tokenizer adds one; in every window for a Gemma.

    Raises:
        ConfigError: The text is empty or too short for one window, or there is no BOS token where
            one is asked for.
    """
    preset = limited_to_model(preset, max_length)
    rule = bos_rule(tokenizer, model_type, bos)
    ids = token_ids(preset.joiner.join(documents), tokenizer)
    if not ids:
        raise ConfigError("the text is empty: there is nothing to measure")
    start = bos_ids(tokenizer) if rule != "none" else []
    if preset.scoring == "second half":
        # llama.cpp tokenizes with BOS, then puts it over the first token of every window.
        cut = _blocks([*start, *ids], preset, [])
        if start:
            cut[0][:, 0] = start[0]
            rule = "overwrite"
    else:
        prefix, stream = (start, ids) if rule == "window" else ([], [*start, *ids])
        layout = _blocks if preset.stride is None else _overlapping
        cut = layout(stream, preset, prefix)
    windows, first_scored, lengths = (part[: preset.max_windows] for part in cut)
    return Windows(windows, first_scored, lengths, preset, rule)


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text, as one stream and without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def bos_rule(tokenizer: Any, model_type: str = "", bos: Bos = "auto") -> str:
    """Where BOS goes: ``none``, ``stream`` or ``window``; resolves ``auto``.

    Raises:
        ConfigError: One is asked for that the tokenizer does not have.
    """
    if bos == "auto":
        names = (model_type, type(tokenizer).__name__)
        if tokenizer.bos_token_id is not None and any(
            _BOS_IN_EVERY_WINDOW in name.lower() for name in names
        ):
            return "window"
        return "stream" if _added_ids(tokenizer) else "none"
    if bos != "none" and not bos_ids(tokenizer):
        raise ConfigError(f"bos={bos}: the tokenizer has no BOS token; use bos=none")
    return bos


def bos_ids(tokenizer: Any) -> list[int]:
    """What stands at the begin of a text: what the tokenizer adds, else its BOS token if any."""
    if added := _added_ids(tokenizer):
        return added
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def _added_ids(tokenizer: Any) -> list[int]:
    # What a tokenizer puts before a text is only seen by trying.
    bare = token_ids("a", tokenizer)
    full = list(tokenizer("a", verbose=False)["input_ids"])
    starts = range(len(full) - len(bare) + 1)
    return next((full[:at] for at in starts if full[at : at + len(bare)] == bare), [])


def limited_to_model(preset: Preset, max_length: int) -> Preset:
    """A preset as a model that reads so many tokens at once is measured by. Raises ConfigError."""
    context = min(preset.context, max_length)
    stride = preset.stride
    if stride is not None and stride >= context:
        # Without an overlap the first token of every window would go unscored.
        if "stride" in preset.overrides:
            raise ConfigError(f"eval.stride={stride}: must be less than the context, {context}")
        stride = context // 2
    return replace(preset, context=context, stride=stride)


def _blocks(
    stream: list[int], preset: Preset, prefix: list[int]
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Windows without overlap; what remains at the end is dropped: see :func:`_overlapping`."""
    import torch

    inner = preset.context - len(prefix)
    count = len(stream) // inner
    if not count:
        raise ConfigError(
            f"the text is too short: {len(stream)} tokens, and one window of preset "
            f"{preset.name} takes {inner}; give a longer text, or lower eval.context"
        )
    text = torch.tensor(stream[: count * inner], dtype=torch.int64).view(count, inner)
    before = torch.tensor(prefix, dtype=torch.int64).expand(count, len(prefix))
    # llama.cpp: the logits of positions n/2 to n-2 predict the tokens n/2+1 to n-1.
    half = preset.context // 2 + 1
    first = half if preset.scoring == "second half" else max(1, len(prefix))
    return (
        torch.cat([before, text], dim=1),
        torch.full((count,), first),
        torch.full((count,), preset.context),
    )


def _overlapping(
    stream: list[int], preset: Preset, prefix: list[int]
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Windows that begin at multiples of the stride.

    A token is scored in the first that holds it, where its context is longest. As
    https://huggingface.co/docs/transformers/perplexity does.

    Returns:
        Ids [windows, context], first scored position and length of each [windows], all int64.
    """
    import torch

    assert preset.stride is not None
    shift, scored = len(prefix), 0 if prefix else 1
    inner = preset.context - shift
    if len(stream) <= scored:
        raise ConfigError("the text is too short: one token has nothing to be predicted from")
    ids, first_scored, lengths = [], [], []
    for begin in range(0, len(stream), preset.stride):
        end = min(begin + inner, len(stream))
        ids.append(torch.tensor(prefix + stream[begin:end], dtype=torch.int64))
        first_scored.append(shift + scored - begin)
        lengths.append(shift + end - begin)
        scored = end
        if end == len(stream):
            break
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return padded, torch.tensor(first_scored), torch.tensor(lengths)
