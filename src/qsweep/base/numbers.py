"""Numbers as people read them, the same in the terminal and in Markdown. None is an empty cell."""

import math

Number = float | int | None


def fixed(value: Number, digits: int) -> str:
    """A number with so many decimals."""
    return "" if value is None else f"{value:.{digits}f}"


def significant(value: Number, digits: int) -> str:
    """A number with so many significant digits and no exponent where that is readable."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > digits + 4 or decimals < -3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(decimals, 0)}f}"


def with_error(value: Number, error: Number) -> str:
    """``12.35 ±0.12``: a value rounded where its error begins to count."""
    if value is None:
        return ""
    if error is None or not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return significant(value, 5)
    if 0 < abs(value) < 5e-4:
        # Four decimals would leave a single digit, or none.
        return f"{value:.1e} ±{error:.0e}"
    first = -math.floor(math.log10(error))
    decimals = min(max(1 + first, 0), max(4, first))
    return f"{value:.{decimals}f} ±{error:.{decimals}f}"


def interval(low: Number, high: Number) -> str:
    """``1.021-1.043``."""
    return "" if low is None or high is None else f"{_ratio(low)}-{_ratio(high)}"


def expected(bounds: tuple[float, float] | None) -> str:
    """``1.05-1.10``: the field's ratio; two decimals are all that it has."""
    return "" if bounds is None else f"{bounds[0]:.2f}-{bounds[1]:.2f}"


def ratio(value: Number) -> str:
    """A perplexity ratio: three decimals, fewer where it is large."""
    return "" if value is None else _ratio(value)


def divergence(value: Number) -> str:
    """A KL divergence: four decimals, ``0`` only where it is exactly that."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) >= 5e-5 else f"{value:.0e}"


def gigabytes(value: Number) -> str:
    """A size in GB: ``0.0056``, ``4.37``, ``16.1``."""
    if value is None:
        return ""
    return f"{value:.4f}" if value < 1 else significant(value, 3)


def percent(value: Number) -> str:
    """A share of 1 as a percentage."""
    return "" if value is None else f"{100 * value:.1f}%"


def seconds(value: Number) -> str:
    """A duration: ``0.4s``, ``42s``, ``3m10s``, ``2h05m``."""
    if value is None or not math.isfinite(value):
        return ""
    if value < 10:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(value / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


def counted(number: int, word: str) -> str:
    """``1 draw``, ``8 draws``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def one_line(text: object) -> str:
    """Text without line breaks, tabs or other control characters."""
    words = "".join(c if c.isprintable() else " " for c in str(text)).split()
    return " ".join(words)


def markdown(text: object) -> str:
    """Text safe in a cell of a Markdown table: one line, pipes and markup escaped."""
    line = one_line(text)
    for character in ("\\", "|", "`", "*", "[", "]", "<", ">"):
        line = line.replace(character, "\\" + character)
    return line


def _ratio(value: float) -> str:
    if not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else significant(value, 4)
