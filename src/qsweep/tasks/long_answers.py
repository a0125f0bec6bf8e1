"""Long answers as they are kept: token by token where that is compared, else what is told of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LongAnswers:
    """What a model said to each problem of a task.

    Attributes:
        greedy: Token ids of the greedy answer, by problem.
        lengths: Tokens of each sampled answer, by problem.
        truncated: Whether each ran into the most tokens that were allowed.
        loops: Whether each ends in a loop.
    """

    greedy: list[list[int]]
    lengths: list[list[int]]
    truncated: list[list[bool]]
    loops: list[list[bool]]
