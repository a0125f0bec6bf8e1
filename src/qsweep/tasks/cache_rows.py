"""Keys and values of rows that are decoded together; where one is done, another takes its place.

Rows are aligned at their end: the newest token of each lies in the same column. A row that comes
later ends in the column of the others, what lies before its begin is masked, and positions are the
rows' own. transformers' own caches grow by copying all they hold at every step, and keep a row that
is done until the last of its batch is.

Imports torch and transformers: for use inside functions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from qsweep.tasks.attention import takes

# Columns by which buffers grow at least.
_MORE = 128

# By layer: keys and values of one text, [1, heads, tokens, size].
Kept = list[tuple[Tensor, Tensor]]


def read_prompt(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[Kept, Tensor]:
    """What a model keeps of a prompt, and the logits of the token after it, float32 [vocabulary]."""
    run: Any = model
    # Without a configuration every layer keeps all tokens: masks alone say what a window hides.
    cache = DynamicCache()
    more = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    ids = torch.tensor([list(prompt)], device=model.device)
    found = run(input_ids=ids, past_key_values=cache, use_cache=True, **more)
    kept: Kept = []
    for layer in cache.layers:
        keys, values = (getattr(layer, name, None) for name in ("keys", "values"))
        if keys is None or values is None or keys.shape[2] != len(prompt):
            raise ValueError("its layers keep something else than keys and values of every token")
        kept.append((keys, values))
    return kept, found.logits[0, -1].float()


class Rows:
    """Rows that are decoded together.

    Args:
        model: What decodes them.
        size: How many there are.
        width: Tokens of the longest prompt that will be placed.
    """

    def __init__(self, model: PreTrainedModel, size: int, width: int):
        self._model: Any = model
        self._positions = takes(model, "position_ids")
        self.clock = width
        self._begins = torch.zeros(size, dtype=torch.int64, device=model.device)
        self._mask = torch.zeros(size, width + _MORE, dtype=torch.int64, device=model.device)
        self._layers: list[_Layer] = []
        self._cache: Cache | None = None
        self._first = 0

    @property
    def first(self) -> int:
        """The first column that any row has a token in."""
        return self._first

    def place(self, slot: int, kept: Kept) -> None:
        """Put a prompt that was read into a place, over what was there."""
        if self._cache is None:
            self._layers = [_Layer(self, keys, values, self._mask.shape) for keys, values in kept]
            self._cache = Cache(layers=list(self._layers))
        begin = self.clock - kept[0][0].shape[2]
        for layer, (keys, values) in zip(self._layers, kept, strict=True):
            layer.write(slot, begin, keys, values)
        self._mask[slot] = 0
        self._mask[slot, begin : self.clock] = 1
        self._begins[slot] = begin
        self._first = int(self._begins.min())

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        chosen = torch.tensor(slots, device=self._mask.device)
        self._move(chosen, self._mask.shape[1])

    def step(self, tokens: Tensor) -> Tensor:
        """Give each row its next token, int64 [rows]; the logits after it, float32 [rows, vocabulary]."""
        if self.clock == self._mask.shape[1]:
            used = self.clock - self._first
            self._move(slice(None), used + max(_MORE, used // 4))
        self._mask[:, self.clock] = 1
        positions = {"position_ids": (self.clock - self._begins)[:, None]}
        found = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask[:, self._first : self.clock + 1],
            past_key_values=self._cache,
            use_cache=True,
            **(positions if self._positions else {}),
        )
        self.clock += 1
        return found.logits[:, -1].float()

    def _move(self, rows: "Tensor | slice", width: int) -> None:
        # To buffers of so many columns, without what lies before the first that is in use.
        first = int(self._begins[rows].min())
        for layer in self._layers:
            layer.move(rows, first, self.clock, width)
        mask = self._mask[rows, first : self.clock]
        self._mask = mask.new_zeros(len(mask), width)
        self._mask[:, : mask.shape[1]] = mask
        self._begins = self._begins[rows] - first
        self.clock -= first
        self._first = 0


class _Layer(DynamicLayer):
    """What one layer keeps of all rows, in buffers with room for further columns."""

    def __init__(self, rows: Rows, keys: Tensor, values: Tensor, shape: Sequence[int]):
        super().__init__()
        self._rows, self.is_initialized = rows, True
        self.dtype, self.device = keys.dtype, keys.device
        size, width = shape
        self._kept = [
            one.new_zeros(size, one.shape[1], width, one.shape[3]) for one in (keys, values)
        ]

    def write(self, slot: int, begin: int, *kept: Tensor) -> None:
        for buffer, new in zip(self._kept, kept, strict=True):
            buffer[slot, :, begin : begin + new.shape[2]] = new[0]

    def move(self, rows: "Tensor | slice", first: int, end: int, width: int) -> None:
        moved = []
        for old in self._kept:
            chosen = rows if isinstance(rows, slice) else rows.to(old.device)  # layers may be apart
            used = old[chosen, :, first:end]
            new = old.new_zeros(used.shape[0], old.shape[1], width, old.shape[3])
            new[:, :, : end - first] = used
            moved.append(new)
        self._kept = moved

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Take one token's keys and values, [rows, heads, 1, size]; all that a layer attends to."""
        rows = self._rows
        for buffer, new in zip(self._kept, (key_states, value_states), strict=True):
            buffer[:, :, rows.clock] = new[:, :, 0]
        keys, values = (buffer[:, :, rows.first : rows.clock + 1] for buffer in self._kept)
        return keys, values

    def get_seq_length(self) -> int:
        """How many columns are in use, before the step's own."""
        return self._rows.clock - self._rows.first
