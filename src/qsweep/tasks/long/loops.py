"""Whether an answer turns in circles. Pure."""

from collections.abc import Sequence

# Tokens of the longest pattern that is looked for; how often it must stand there, and over how many
# tokens, for it to be no list or refrain.
PERIOD, TIMES, LEAST = 64, 4, 32


def ends_in_loop(
    tokens: Sequence[int], period: int = PERIOD, times: int = TIMES, least: int = LEAST
) -> bool:
    """Whether a text's last tokens are a pattern over and over.

    That is so if for some length of at most ``period`` tokens each of the last
    ``max(times * length, least)`` tokens is the same as the one that stands ``length`` before it, as
    far as that is among them. A counter that goes up in each round makes the rounds differ: that is
    no loop.

    Args:
        tokens: The text, without the token that ends it.
        period: Tokens of the longest pattern.
        times: How often it stands there at least.
        least: Over how many tokens at least.
    """
    for length in range(1, period + 1):
        span = max(times * length, least)
        if span > len(tokens):
            continue
        tail = list(tokens[len(tokens) - span :])
        if tail[length:] == tail[:-length]:
            return True
    return False
