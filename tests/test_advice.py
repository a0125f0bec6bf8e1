"""What a refusal advises leads somewhere."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from qsweep.errors import BackendUnavailable, IncompatibleTrial
from qsweep.quantizers import ModelFacts
from qsweep.quantizers.foreign import AutoAWQ, AutoGPTQ, AutoRound
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN


def facts_of(linears, model_type="llama", experts=False):
    return ModelFacts("mini", Path(), model_type, linears, 1000, 512, 100, experts)


ODD = {"layers.0.a": (512, 512), "layers.0.b": (512, 512), "layers.0.c": (4, 512)}
PLAIN = {"layers.0.a": (512, 512), "layers.0.b": (512, 192)}
REFUSED = [
    (quantizer, facts_of(linears, model_type))
    for linears in (ODD, PLAIN)
    for model_type in ("llama", "of_tomorrow", "gpt2")
    for quantizer in (
        RTN(group_size=128), RTN(bits=5), RTN(group_size=96),
        NativeGPTQ(group_size=16), NativeGPTQ(group_size=256), NativeAWQ(group_size=128),
        NativeAWQ(bits=6), GPTQ(group_size=48), AWQ(group_size=256),
        AutoAWQ(bits=3, group_size=64), AutoAWQ(group_size=64, sym=True), AutoAWQ(group_size=64),
        AutoAWQ(group_size=128), AutoGPTQ(group_size=64), AutoGPTQ(group_size=64, sym=False),
        AutoRound(bits=3, export="awq"), AutoRound(sym=False), AutoRound(group_size=64),
    )
]  # fmt: skip


def advised(quantizer, message):
    """The other choices that a refusal names, with the refused trial's remaining options."""
    values = {n: getattr(quantizer, n) for n in ("bits", "group_size") if hasattr(quantizer, n)}
    awq = quantizer.method == "awq"
    for sizes in re.findall(r"for this model: ([-\d, ]+)", message):
        for size in sizes.split(", "):
            yield replace(quantizer, group_size=int(size))
    if "a multiple of it" in message:
        yield replace(quantizer, group_size=32)
    if re.search(r"quant=rtn|gptq and rtn", message):
        yield RTN(**values)
    if "gptq and rtn" in message:
        yield NativeGPTQ(**values)
    bits = [2, 3, 8] if "2, 3 and 8" in message else [quantizer.bits]
    for width in bits:
        if re.search(r"native (or|and)|and native", message):
            yield (NativeAWQ if awq else NativeGPTQ)(**values | {"bits": width})
        if "gptqmodel" in message and "pip install" not in message:
            yield (AWQ if awq else GPTQ)(**values | {"bits": width})
    if "sym=false" in message or "sym=true" in message:
        yield replace(quantizer, sym="sym=true" in message)
    if "4 bits only" in message:
        yield replace(quantizer, bits=4)


def refusal(quantizer, facts):
    try:
        quantizer.check(facts)
    except BackendUnavailable:
        return None
    except IncompatibleTrial as error:
        return str(error)
    return None


def leads_on(quantizer, facts, message, depth=3):
    """Fails unless every choice that a refusal names is taken, or refused with one that is.

    Where two options are wrong they are told one by one; what stands in the way of one backend
    alone, and needs no way out within it, ends the search.
    """
    for other in advised(quantizer, message):
        found = refusal(other, facts)
        if found is None:
            continue
        assert type(other) is type(quantizer), f"{message} -> {found}"
        if "on CUDA only" in found or "does not know" in found:
            continue
        assert depth and list(advised(other, found)), f"{message} -> {found}"
        leads_on(other, facts, found, depth - 1)


@pytest.mark.parametrize(("quantizer", "facts"), REFUSED)
def test_what_a_refusal_advises_is_not_refused(quantizer, facts, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    facts = replace(facts, path=tmp_path)
    if (message := refusal(quantizer, facts)) is not None:
        leads_on(quantizer, facts, message)
