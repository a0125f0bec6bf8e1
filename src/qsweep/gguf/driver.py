"""Runs llama.cpp's official converter and notes which tensor became which.

A script for a process of its own, since the converter brings its own copy of the module ``gguf``:

    python driver.py CONVERTER_DIR MODEL_DIR OUT.gguf OUTTYPE NOTES.json TRUST

It imports nothing of qsweep. ``NOTES.json`` gets ``groups``, pairs of lists (names in the
checkpoint, names in the file that were written from them), and ``skipped``, the names in the
checkpoint that the converter leaves out as not belonging to the text model.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Convert, by the arguments of the command line."""
    converter, model, out, outtype, notes, trust = sys.argv[1:]
    # transformers imports scikit-learn wherever it finds it, and takes two seconds over it.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    sys.path[:0] = [converter, os.path.join(converter, "gguf-py")]
    import convert_hf_to_gguf
    import transformers

    groups: list[tuple[list[str], list[str]]] = []
    names: dict[str, str | None] = {}
    choose = convert_hf_to_gguf.get_model_class
    convert_hf_to_gguf.get_model_class = lambda *args, **more: _recorded(
        choose(*args, **more), groups, names
    )
    _restrict_code(transformers, trust == "trust")
    _keep_old_names(convert_hf_to_gguf.ModelBase)
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", outtype]
    convert_hf_to_gguf.main()

    originals = {kept: name for name, kept in names.items() if kept is not None}
    found = {
        "groups": [([originals.get(n, n) for n in source], made) for source, made in groups],
        "skipped": sorted(name for name, kept in names.items() if kept is None),
    }
    Path(notes).write_text(json.dumps(found), encoding="utf-8")


def _recorded(
    base: Any, groups: list[tuple[list[str], list[str]]], names: dict[str, str | None]
) -> Any:
    """The converter's class for a model, which also notes names, and knows one tokenizer more."""
    waiting: list[str] = []

    class Recorded(base):
        model_arch = base.model_arch

        @classmethod
        def filter_tensors(cls, item):
            kept = super().filter_tensors(item)
            names[item[0]] = kept[0] if kept else None
            return kept

        def modify_tensors(self, data_torch, name, bid):
            # Tensors that are merged, such as experts, come one by one and leave together.
            waiting.append(name)
            made = []
            for new_name, data in super().modify_tensors(data_torch, name, bid):
                made.append(new_name)
                yield new_name, data
            if made:
                groups.append((waiting.copy(), made))
                waiting.clear()

        def get_vocab_base_pre(self, tokenizer):
            # The converter tells pre-tokenizers apart by a hash of one text's token ids, which no
            # newly trained vocabulary can match. GPT-2's is recognised by what it is.
            try:
                return super().get_vocab_base_pre(tokenizer)
            except NotImplementedError:
                if _splits_as_gpt2(self.dir_model / "tokenizer.json"):
                    return "gpt-2"
                raise

    return Recorded


def _splits_as_gpt2(path: Path) -> bool:
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return False
    splitter = tokenizer.get("pre_tokenizer") or {}
    return (
        tokenizer.get("normalizer") is None
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True)
        and not splitter.get("add_prefix_space", False)
    )


def _restrict_code(transformers: Any, trusted: bool) -> None:
    # Some of the converter's classes run a checkpoint's own code unasked.
    for auto in (transformers.AutoTokenizer, transformers.AutoConfig):
        load = auto.from_pretrained

        def restricted(*args, load=load, **more):
            return load(*args, **{**more, "trust_remote_code": trusted})

        auto.from_pretrained = restricted


def _keep_old_names(base: Any) -> None:
    # transformers 5 moved GPT-NeoX's rotary_pct, which the converter reads, into rope_parameters,
    # and no longer writes GPT-2's n_ctx.
    load = base.load_hparams

    def with_old_names(*args, **more):
        config = load(*args, **more)
        factor = (config.get("rope_parameters") or {}).get("partial_rotary_factor")
        if factor is not None:
            config.setdefault("rotary_pct", factor)
        if "n_positions" in config:
            config.setdefault("n_ctx", config["n_positions"])
        return config

    base.load_hparams = staticmethod(with_old_names)


if __name__ == "__main__":
    main()
