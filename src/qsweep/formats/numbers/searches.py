"""How the scale of a group of weights may be chosen."""

from typing import Literal

# ``range`` takes a group's extremes; ``mse`` scales them so that the sum of |error|^2.4 is least;
# ``loss`` so that the square error, weighted as a quantizer weighs it, is least.
Search = Literal["range", "mse", "loss"]
