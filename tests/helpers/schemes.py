"""Schemes of integers, and their arithmetic on groups without a layer around them."""

from qsweep.formats.numbers.grids import Integers
from qsweep.formats.numbers.scheme import Scheme


def integers(bits, sym, group=-1, search="range"):
    """A scheme of whole numbers with scales in float16."""
    return Scheme(Integers(bits, sym), group, search=search)


def find_scales(weights, scheme, importance=None):
    """Scale and zero point of each group of weights [..., n], both [...]."""
    layer = scheme.layers([weights.flatten(0, -2)])[0]
    scale, zero = layer.find(weights.reshape(-1, 1, weights.shape[-1]), importance)
    return scale.view(weights.shape[:-1]), zero.view(weights.shape[:-1])


def nearest_codes(weights, scale, zero, scheme):
    """The nearest codes of weights [..., n], as float32, on grids that broadcast against them."""
    return scheme.grid.nearest(weights / scale, zero) + zero
