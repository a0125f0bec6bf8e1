"""A blend: the texts that a quantizer is calibrated on, each with its share of the samples. Pure."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from qsweep.base.errors import ConfigError
from qsweep.text.corpus import CorpusConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Blend:
    """Texts by weight, the heaviest first, whatever order they are given in; mostly a single one.

    Weights are relative: 1 and 1 are the same blend as 0.5 and 0.5. Since all samples are of one
    length, a share of the samples is one of the tokens.

    Raises:
        ConfigError: A weight is no number above 0, or a name stands for two texts.
    """

    texts: tuple[CorpusConfig, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        pairs = list(zip(self.texts, self.weights, strict=True))
        seen: set[str] = set()
        for text, weight in pairs:
            check_weight(text.name, weight)
            check_once(text.name, seen)
        pairs.sort(key=lambda pair: (-pair[1], pair[0].name))
        object.__setattr__(self, "texts", tuple(text for text, _ in pairs))  # frozen
        object.__setattr__(self, "weights", tuple(weight for _, weight in pairs))

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """The weights over their sum; exact, for 0.1 is meant as a tenth."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        return tuple(weight / sum(exact) for weight in exact)

    @property
    def name(self) -> str:
        """What results call it: ``python_docs 70 % + python_code 30 %``; of a single text its name."""
        if len(self.texts) == 1:
            return self.texts[0].name
        return " + ".join(
            f"{text.name} {float(100 * share):.3g} %"
            for text, share in zip(self.texts, self.shares, strict=True)
        )

    def check_counts(self, num_samples: int, most: int) -> None:
        """Refuse a share that comes to no sample of so many.

        Args:
            num_samples: How many samples there are.
            most: As many may be asked for; no more are advised.

        Raises:
            ConfigError: One line with the number that would do.
        """
        counts = sample_counts(self.shares, num_samples)
        for text, share, count in zip(self.texts, self.shares, counts, strict=True):
            if not count:
                enough = math.ceil(1 / min(self.shares))
                do = f"calibration.num_samples={enough} would do, or " if enough <= most else ""
                raise ConfigError(
                    f"calibration.num_samples={num_samples}: {text.name} has a share of "
                    f"{float(100 * share):.3g} %, which comes to no sample; {do}give it a larger share"
                )


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is no number above 0. Raises ConfigError."""
    if not 0 < weight < math.inf:  # nor is a NaN
        raise ConfigError(f"calibration: {name}:{weight}: a share is a number above 0")


def check_once(name: str, seen: set[str]) -> None:
    """Add a name to those seen. Raises ConfigError where it was there."""
    if name in seen:
        raise ConfigError(f"calibration: {name} is named twice; name it once, with the whole share")
    seen.add(name)


def sample_counts(shares: Sequence[Fraction], total: int) -> list[int]:
    """How many of so many samples each share comes to, by the largest remainders; they add up.

    >>> sample_counts([Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)], 7)
    [4, 2, 1]
    """
    counts = [math.floor(share * total) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda n: counts[n] - shares[n] * total)
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def interleaved(parts: Sequence[Sequence[T]], seed: int) -> list[T]:
    """All members of all parts, each part's spread over the whole at random and in its order.

    So whoever reads the first of them alone sees about the same shares.
    """
    draw = random.Random(seed)  # noqa: S311 - not for cryptography
    placed = [
        ((number + draw.random()) / len(part), member)
        for part in parts
        for number, member in enumerate(part)
    ]
    return [member for _, member in sorted(placed, key=lambda one: one[0])]
