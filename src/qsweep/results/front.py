"""The Pareto front, for every picture, page and search."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], point: Callable[[T], tuple[float, ...] | None]) -> list[T]:
    """The items that no other is better than in one thing and no worse in the others.

    Args:
        items: Of equal ones the first is kept.
        point: What counts of one, less being better everywhere; None: it takes no part.

    Returns:
        In the order of their points.
    """
    usable = [(found, item) for item in items if (found := point(item)) is not None]
    usable.sort(key=lambda pair: pair[0])
    kept: list[tuple[tuple[float, ...], T]] = []
    for found, item in usable:
        # Whoever beats another comes before it in this order; of two things, the last one kept has
        # the least of the second.
        rivals = kept[-1:] if len(found) == 2 else kept
        if not any(all(a <= b for a, b in zip(other, found, strict=True)) for other, _ in rivals):
            kept.append((found, item))
    return [item for _, item in kept]
