"""What came of loading a checkpoint into an architecture: what is missing, odd, or left out.

transformers fills up what is missing with random numbers and leaves out what it has no use for, both
with a warning at most; either way the figures are those of another model.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.models.facts import FURTHER_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Constants that old checkpoints store: rotary frequencies, causal masks, positions, a version.
_BUFFER = re.compile(
    r"(\.|^)(inv_freq|rope\.freqs|masked_bias|causal_mask|position_ids|version"
    r"|attn\.bias|attention\.bias)$"
)
# Parts of a checkpoint that a causal language model has no use for: other senses and voices.
_TOWER = re.compile(
    r"(^|[._])(vision|visual|audio|image|vit|speech|talker|token2wav|projector|resampler|connector"
    r"|qformer|perceiver)"
    r"([._]|$)"
)
# Within a decoder's layer only these tell it: a projector there may well be the decoder's own.
_OTHER_SENSE = re.compile(r"(^|[._])(vision|visual|audio|speech)([._]|$)")
# Layers that predict the tokens after the next one.
_MORE_TOKENS = re.compile(r"(^|[._])(mtp|nextn|mtp_layers)([._]|$)")
_NUMBERED = re.compile(r"^.*?\.\d+\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Tensors that are one of several: of an expert, in a layer.
_ONE_OF_MANY = re.compile(r"^(.*\.\d+\..*?\.)(\d+)(\..*)$")
_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """A loading's outcome.

    Attributes:
        problem: What makes the loaded model another one, in one line; None if nothing does.
        left_out: Stored tensors that the architecture rightly has no use for, their numbers
            replaced by ``*``, and how many there are of each.
    """

    problem: str | None
    left_out: dict[str, int]


def report(
    model: "PreTrainedModel", info: Mapping[str, Any], stored: Iterable[str], layers: Any = None
) -> LoadReport:
    """Judge what transformers says of a loading.

    Args:
        model: What was loaded.
        info: transformers' ``loading_info``, of a loading with ``ignore_mismatched_sizes``.
        stored: Names of all tensors in the checkpoint.
        layers: ``num_hidden_layers`` as configured, to be named where layers are left over.
    """
    names = sorted(stored)
    unexpected = sorted(info.get("unexpected_keys") or ())
    further = {m.group(1) for name in names if (m := FURTHER_TOKENS.match(name))}
    own = {m.group() for name in model.state_dict() if (m := _NUMBERED.match(name))}
    harmless = [name for name in unexpected if _is_harmless(name, further, own)]
    wrong = sorted({*unexpected} - {*harmless})
    problems = list(_problems(info))
    if wrong:
        numbers = [int(m.group(1)) for name in wrong if (m := _LAYER.search(name))]
        beyond = isinstance(layers, int) and len(numbers) == len(wrong) and min(numbers) >= layers
        why = f", where config.json says num_hidden_layers is {layers}" if beyond else ""
        problems.append(
            f"left out, since the architecture has no place for it: {_some(wrong)}{why}"
        )
    ignored = _ignored_by_transformers(model, names)
    counts: dict[str, int] = {}
    for name in sorted({*harmless, *ignored}):
        pattern = _NUMBER.sub("*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return LoadReport("; ".join(problems) or None, counts)


def unmerged(error: Exception, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why tensors cannot be stacked into the architecture's, such as those of a layer's experts.

    transformers says of it no more than that there were some issues.

    Args:
        error: What its loading raised.
        shapes: Those of all tensors in the checkpoint, by name.

    Returns:
        A problem as in :class:`LoadReport`; None if the error is of another kind.
    """
    if not isinstance(error, RuntimeError) or "conversion of the weights" not in str(error):
        return None
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(dict)
    numbers: dict[str, set[str]] = defaultdict(set)
    for name, shape in shapes.items():
        if match := _ONE_OF_MANY.match(name):
            before, number, after = match.groups()
            groups[before, after][number] = list(shape)
            numbers[before].add(number)
    missing, odd = [], []
    for (before, after), found in groups.items():
        missing += [f"{before}{number}{after}" for number in numbers[before] - found.keys()]
        usual = Counter(map(tuple, found.values())).most_common(1)[0][0]
        odd += [
            f"{before}{number}{after} ({shape}, others {list(usual)})"
            for number, shape in found.items()
            if tuple(shape) != usual
        ]
    if missing or odd:
        info = {"missing_keys": missing, "error_msgs": ()}
        shown = [*_problems(info), *([f"of another shape: {_some(odd)}"] if odd else [])]
        return "; ".join(shown)
    return "transformers cannot merge them into those of its architecture; the log names them"


def _is_harmless(name: str, further_layers: set[str], own_layers: set[str]) -> bool:
    if any(name.startswith(f"{layer}.") for layer in further_layers):
        return True
    layer = _NUMBERED.match(name)
    tower = _OTHER_SENSE if layer and layer.group() in own_layers else _TOWER
    return any(pattern.search(name) for pattern in (_BUFFER, tower, _MORE_TOKENS))


def _ignored_by_transformers(model: "PreTrainedModel", names: Sequence[str]) -> list[str]:
    # An architecture's own list of what its checkpoints hold beside it, and buffers that used to be
    # stored: neither is in the loading's report.
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    ignored = re.compile("|".join(f"({pattern})" for pattern in (*patterns, _BUFFER.pattern)))
    own = set(model.state_dict())
    return [name for name in names if name not in own and ignored.search(name)]


def _problems(info: Mapping[str, Any]) -> Iterator[str]:
    if info.get("missing_keys"):
        yield f"missing: {_some(info['missing_keys'])}"
    if info.get("mismatched_keys"):
        shapes = sorted(
            (str(key), list(stored), list(own)) for key, stored, own in info["mismatched_keys"]
        )
        shown = [f"{key} ({stored}, configured {own})" for key, stored, own in shapes]
        yield f"of another shape: {_some(shown)}"
    if info.get("error_msgs"):
        yield f"unreadable: {_some(' '.join(str(text).split()) for text in info['error_msgs'])}"


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
