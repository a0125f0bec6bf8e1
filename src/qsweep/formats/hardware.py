"""Cards that models are served on, and how a number format runs there. No torch here.

What multiplies what is a matter of the generation; what serves it is vLLM's kernels, as its pages on
quantization had it in 2026 (https://docs.vllm.ai/en/latest/features/quantization/):

- FP8 is multiplied from Ada (sm 89) on, FP4 and all MX formats from Blackwell (sm 100, 120) on.
- INT8 is multiplied from Turing (sm 75) to Hopper: there is no such kernel for Blackwell.
- Where FP8 and FP4 cannot be multiplied, Marlin's kernels unpack their weights to 16 bits, from Turing
  on; activations then stay in 16 bits, too.
- On a CPU vLLM serves integers of 4 bits and INT8, llama.cpp all of GGUF.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.formats.numbers.number_format import Generation, NumberFormat

GENERATIONS: tuple[Generation, ...] = get_args(Generation)
"""From the oldest on."""
ANY = "any"
"""What :func:`native_on` says where the generation does not matter."""
UNPACKED = "weights are unpacked and activations stay in 16 bits"


@dataclass(frozen=True)
class Card:
    """What models are served on.

    Attributes:
        name: As in ``search.hardware=``.
        generation: None of a CPU.
        memory_gb: As the vendor counts it; None of a CPU.
    """

    name: str
    generation: Generation | None = None
    memory_gb: int | None = None

    def __str__(self) -> str:
        generation = "" if self.generation is None else f" ({self.generation.capitalize()})"
        return self.name + generation


# NVIDIA's data sheets of each product and its MIG user guide's table of supported GPUs.
_GPUS: dict[Generation, dict[str, int]] = {
    "turing": {"t4": 16, "rtx2080ti": 11},
    "ampere": {
        "a100": 80, "a100-40gb": 40, "a10": 24, "a30": 24, "a40": 48, "a6000": 48,
        "rtx3060": 12, "rtx3080": 10, "rtx3090": 24,
    },
    "ada": {
        "l4": 24, "l40": 48, "l40s": 48, "rtx6000-ada": 48,
        "rtx4070ti": 12, "rtx4080": 16, "rtx4090": 24,
    },
    "hopper": {"h100": 80, "h100-nvl": 94, "h20": 96, "gh200": 96, "h200": 141},
    "blackwell": {
        "b200": 180, "gb200": 186, "rtx-pro-6000": 96, "rtx5070ti": 16, "rtx5080": 16, "rtx5090": 32,
    },
}  # fmt: skip
CARDS = {
    "cpu": Card("cpu"),
    **{
        name: Card(name, generation, memory)
        for generation, cards in _GPUS.items()
        for name, memory in cards.items()
    },
}
"""All that are known, by name."""


@dataclass(frozen=True)
class Fit:
    """How a number format runs on a card.

    Attributes:
        how: ``native``: multiplied as it is; ``unpacked``: weights become 16 bits first; None: not.
        why: Where it does not run, or not with the activations that it wants.
    """

    how: Literal["native", "unpacked"] | None
    why: str = ""


def find_card(name: str, where: str) -> Card:
    """A card by its name, however it is written: ``RTX 4090`` is ``rtx4090``.

    Raises:
        ConfigError: Nothing is known of it; the line names the nearest.
    """
    spelled = {_letters(known): card for known, card in CARDS.items()}
    if (found := spelled.get(_letters(name))) is not None:
        return found
    raise ConfigError(f"{where}={name}: no such card{nearest(name.lower(), CARDS)}")


def fit(number: "NumberFormat | type[NumberFormat]", card: Card, holder: str | None = None) -> Fit:
    """How a number format runs on a card.

    >>> from qsweep.formats.numbers import FP8, NVFP4
    >>> fit(NVFP4, CARDS["b200"]).how, fit(NVFP4, CARDS["h100"]).how, fit(FP8, CARDS["cpu"]).how
    ('native', 'unpacked', None)

    Args:
        number: The format.
        card: What is to serve it.
        holder: The container that it lies in, where that is known.
    """
    if holder == "gguf":
        return Fit("unpacked")  # llama.cpp runs everywhere, and has kernels for all of its types
    if card.generation is None:
        if not number.on_cpu:
            return Fit(None, f"no server has a kernel for {number.name} on a CPU")
        return Fit("unpacked" if number.activations is None else "native")
    if number.activations is None:
        return Fit("unpacked")
    place = GENERATIONS.index(card.generation)
    since, until = number.native_since, number.native_until
    if (
        since is not None
        and GENERATIONS.index(since) <= place
        and (until is None or place <= GENERATIONS.index(until))
    ):
        return Fit("native")
    needs = f"needs {native_on(number)}"
    if number.unpacks:
        return Fit("unpacked", f"{number.name} {needs} to be multiplied as it is: {UNPACKED}")
    return Fit(None, f"{number.name} {needs}")


def native_on(number: "NumberFormat | type[NumberFormat]") -> str:
    """The generations that run a format as it is meant, in a word or three.

    >>> from qsweep.formats.numbers import FORMATS
    >>> [native_on(FORMATS[name]) for name in ("nvfp4", "w8a8", "w4afp8", "w4a16")]
    ['Blackwell', 'Turing to Hopper', 'Hopper only', 'any']
    """
    if number.activations is None:
        return ANY
    since, until = number.native_since, number.native_until
    if since is None:
        return "an Arm CPU" if number.on_cpu else "no GPU"
    if until is None:
        later = GENERATIONS.index(since) + 1 < len(GENERATIONS)
        return since.capitalize() + " or later" * later
    return (
        f"{since} only".capitalize()
        if until == since
        else f"{since.capitalize()} to {until.capitalize()}"
    )


def where(number: "NumberFormat | type[NumberFormat]") -> str:
    """Where a format runs, and what becomes of it elsewhere, in a sentence without a full stop.

    >>> from qsweep.formats.numbers import FORMATS
    >>> where(FORMATS["w8a8"])
    'multiplied as it is on Turing to Hopper or a CPU; elsewhere no kernel serves it'
    """
    if number.activations is None:
        return f"weights are unpacked to 16 bits on any GPU{' or CPU' * number.on_cpu}"
    cpu = " or a CPU" * (number.on_cpu and number.native_since is not None)
    instead = UNPACKED if number.unpacks else "no kernel serves it"
    return f"multiplied as it is on {native_on(number)}{cpu}; elsewhere {instead}"


def _letters(name: str) -> str:
    return (
        "".join(c for c in name.lower() if c.isalnum())
        .removeprefix("nvidia")
        .removeprefix("geforce")
    )
