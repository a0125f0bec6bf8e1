"""``search.hardware``: which trials of a search run on a card, and which are left out for what reason."""

from typing import Any

from qsweep.formats.hardware import UNPACKED, Card, Fit, fit
from qsweep.formats.numbers.number_format import NumberFormat
from qsweep.results.columns.table import SIZE_GB
from qsweep.search.objectives import Constraint


class OnCard:
    """What a search has seen of its space on a card; everything runs where there is none.

    >>> from qsweep.formats.hardware import CARDS
    >>> from qsweep.quantizers.rtn import RTN
    >>> from qsweep.formats.numbers import MXFP8
    >>> OnCard(CARDS["h100"]).why_not(RTN(format=MXFP8()))
    'mxfp8 needs Blackwell'
    """

    def __init__(self, card: Card | None):
        self.card = card
        self._left_out: dict[str, str] = {}
        self._unpacked: dict[str, None] = {}
        self._uncached: dict[str, None] = {}
        self._runs = False

    def why_not(self, quant: Any, cached: bool = False) -> str:
        """Why what a quantizer makes does not run on the card; nothing where it does, or may.

        Args:
            quant: The quantizer.
            cached: Whether its trial has a quantized KV cache.
        """
        number = getattr(quant, "format", None)
        if self.card is None or not isinstance(number, NumberFormat):
            self._runs = True
            return ""
        found = fit(number, self.card, "gguf" if quant.method == "gguf" else None)
        self._see(number.name, found, cached)
        return found.why if found.how is None else ""

    @property
    def lines(self) -> list[str]:
        """What there is to say of the card, for the answer."""
        if self.card is None:
            return []
        memory = self.card.memory_gb
        lines = [f"on {self.card}" + (f", {memory} GB" if memory else "")]
        if self._unpacked:
            lines.append(f"{', '.join(self._unpacked)} there: {UNPACKED}, so only weights count")
        if self._uncached:
            lines.append(
                f"{', '.join(self._uncached)} there: a KV cache is measured on top of quantized "
                "activations, so it does not count either, and trials that differ in kv_cache alone "
                "are equal: choose the cache with quant=none, or with a format that leaves "
                "activations alone"
            )
        if self._left_out:
            lines.append(f"left out there: {'; '.join(self._left_out.values())}")
        return lines

    @property
    def nothing(self) -> str:
        """That nothing in the space runs on the card, and why; nothing where something does."""
        if self._runs or not self._left_out:
            return ""
        return f"nothing in the space runs on {self.card}: {'; '.join(self._left_out.values())}"

    def _see(self, name: str, found: Fit, cached: bool) -> None:
        if found.how is None:
            self._left_out[name] = found.why
            return
        self._runs = True
        if found.why:
            self._unpacked[name] = None
            if cached:
                self._uncached[name] = None


def memory_of(card: Card | None) -> list[Constraint]:
    """What does not fit into a card's memory does not run there."""
    if card is None or card.memory_gb is None:
        return []
    return [Constraint(SIZE_GB.name, upper=True, bound=float(card.memory_gb))]
