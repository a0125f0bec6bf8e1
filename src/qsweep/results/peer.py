"""What stands beside a row at equal size. Pure."""

from dataclasses import dataclass

Number = int | float


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The artifact of another maker that is nearest in size, and how a row's stands to it.

    Attributes:
        label: What it is called; ``key``: its trial's.
        size_gb: Its size.
        ppl_ratio: The row's perplexity / its, with the paired interval's ends.
        kld_difference: The row's divergence - its, in nats, with the paired interval's ends.
    """

    label: str
    key: str
    size_gb: Number
    ppl_ratio: Number
    ppl_ratio_low: Number | None = None
    ppl_ratio_high: Number | None = None
    kld_difference: Number | None = None
    kld_difference_low: Number | None = None
    kld_difference_high: Number | None = None

    @property
    def tie(self) -> bool | None:
        """Whether the ratio's interval covers none, so that neither is better; None if unknown."""
        if self.ppl_ratio_low is None or self.ppl_ratio_high is None:
            return None
        return self.ppl_ratio_low <= 1 <= self.ppl_ratio_high
