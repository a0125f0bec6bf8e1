"""The text of a calibration as it lies in the store: what it adds to keys, and the samples drawn of it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.text.blend import Blend, interleaved, sample_counts
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.corpora import calibration_samples
from qsweep.text.stored import Text, stored_text

Packing = Literal["stream", "documents", "conversations"]
# Raised whenever the same texts would now give other samples; in keys of what is packed or blended.
_VERSION = 1


@dataclass(frozen=True)
class Part:
    """One text of a blend as it was loaded."""

    name: str
    text: Text
    share: Fraction


@dataclass(frozen=True)
class CalibrationText:
    """The texts of a blend, mostly a single one, and how samples are made of them.

    Attributes:
        parts: By share, then by content: names and the order in which texts are given decide nothing.
        packing: What a sample is made of.
        template: The model's chat template, where that is a part of it.
    """

    parts: tuple[Part, ...]
    packing: Packing = "stream"
    template: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a key says of it, beside how much is drawn and by which seed."""
        shares = [[part.text.fingerprint, str(part.share)] for part in self.parts]
        one = len(shares) == 1
        found: dict[str, Any] = {"text": shares[0][0]} if one else {"blend": [_VERSION, *shares]}
        if self.packing != "stream":
            found["packing"] = [_VERSION, self.packing]
        if self.template is not None:
            found["template"] = key_of(self.template)
        return found

    def samples(
        self, tokenizer: Any, num_samples: int, max_seq_len: int, seed: int, model_type: str = ""
    ) -> CalibrationTokens:
        """Samples of every text by its share, drawn by the same seed and mixed.

        Of each text, with ``stream``, the samples are the first that it would have alone: two blends that
        differ in one text see the same of the others. A text whose share is too small for so few samples has none.

        Args:
            tokenizer: The model's own.
            num_samples: How many of all texts together.
            max_seq_len: Tokens of each.
            seed: Determines which, and their order.
            model_type: As in the model's ``config.json``.

        Raises:
            ConfigError: A text is too short; the line names it where there are several.
        """
        counts = sample_counts([part.share for part in self.parts], num_samples)
        drawn = [
            self._of(part, tokenizer, count, max_seq_len, seed, model_type)
            for part, count in zip(self.parts, counts, strict=True)
            if count
        ]
        if len(drawn) == 1:
            return drawn[0]
        return CalibrationTokens(
            interleaved([one.samples for one in drawn], seed),
            distinct=sum(one.distinct or 0 for one in drawn),
        )

    def _of(self, part: Part, *how: Any) -> CalibrationTokens:
        from qsweep.text.packing import packed_samples

        try:
            if self.packing == "stream":
                return calibration_samples(part.text.documents(), *how)
            packed: tuple[Any, ...] = (part.text.turns(), *how, self.template)
            return packed_samples(*packed)
        except ConfigError as error:
            if len(self.parts) == 1:
                raise
            raise ConfigError(f"{part.name}: {error}") from error


def stored_calibration(
    blend: Blend, packing: Packing, store: Store, template: str | None = None
) -> CalibrationText:
    """Load the texts of a blend, or find them as they were loaded before.

    ``template`` is the model's chat template, for conversations.

    Raises:
        ConfigError: Two are the same text, or none holds conversations where these are to be packed;
            and whatever :func:`qsweep.text.corpora.load_documents` raises.
    """
    turns = packing == "conversations"
    parts = [
        Part(text.name, stored_text(text, store, turns=turns), share)
        for text, share in zip(blend.texts, blend.shares, strict=True)
    ]
    by_content: dict[str, str] = {}
    for part in parts:
        if (other := by_content.setdefault(part.text.fingerprint, part.name)) != part.name:
            raise ConfigError(
                f"calibration: {other} and {part.name} are the same text; name it once, with the "
                "whole share"
            )
    if turns and not any(part.text.conversations for part in parts):
        raise ConfigError(
            f"calibration.packing=conversations: {blend.name} holds no lists of messages with roles; "
            "calibration.field=NAME names the column that does, calibration.packing=documents packs "
            "what is there"
        )
    ordered = sorted(parts, key=lambda part: (-part.share, part.text.fingerprint))
    return CalibrationText(tuple(ordered), packing, template if turns else None)
