"""Runs llama.cpp's official converter and notes which tensor became which.

A script for a process of its own, since the converter brings its own copy of the module ``gguf``:

    python driver.py CONVERTER_DIR MODEL_DIR OUT.gguf OUTTYPE NOTES.json TRUST LAYERS

It imports nothing of qsweep. ``LAYERS`` is a JSON list that says of each layer whether its
attention has a sliding window, or ``null`` where that need not be told. ``NOTES.json`` gets
``groups``, pairs of lists (names in the checkpoint, names in the file that were written from them),
``skipped``, the names in the checkpoint that the converter leaves out as not belonging to the text
model, and ``added``, the metadata that it forgot; or ``reason``, why it refuses the model.
"""

import json
import os
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

# What decides how llama.cpp computes, beside the tensors, and has one meaning for all models.
_COMPUTING = (
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
)
# What it takes where a file says nothing.
_DEFAULTS = {"rope.freq_base": 10000.0}


# Types whose experts transformers chooses by a sigmoid whatever a configuration says, so that those
# that it writes do not say it. llama.cpp takes a softmax, or nothing, where nobody does.
_SIGMOID = frozenset(
    (
        *("deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa"),
        *("minimax_m2", "solar_open"),
    )
)
# Types that the classes of others convert, which turn half of each head where nobody says so.
_WHOLE_ROTARY = frozenset(("solar_open",))
# How types whose classes take four times the hidden size call the feed-forward network's.
_INNER = {
    **{"falcon": "ffn_hidden_size", "phi": "intermediate_size"},
    **{"gpt2": "n_inner", "gpt_bigcode": "n_inner"},
}
# Classes within a class that hands all its work on to one of them.
_HANDED_ON = ("Ministral3Model", "Mistral4Model")
_SCORING = ("score_function", "scoring_func", "score_func", "moe_router_activation")


def main() -> None:
    """Convert, by the arguments of the command line; the exit code is 1 where that fails."""
    notes = Path(sys.argv[5])
    try:
        converter, model, out, outtype, _, trust, layers = sys.argv[1:]
        found = _convert(
            converter, model, out, outtype, trusted=trust == "trust", layers=json.loads(layers)
        )
    except Exception as error:
        traceback.print_exc()
        notes.write_text(json.dumps({"reason": _reason(error)}), encoding="utf-8")
        sys.exit(1)
    notes.write_text(json.dumps(found), encoding="utf-8")


def _convert(
    converter: str,
    model: str,
    out: str,
    outtype: str,
    *,
    trusted: bool,
    layers: list[bool] | None,
) -> dict[str, Any]:
    # transformers imports these wherever it finds them, and takes seconds over them.
    for unused in ("sklearn", "hqq", "torchao"):
        sys.modules[unused] = None  # type: ignore[assignment]
    sys.path[:0] = [converter, os.path.join(converter, "gguf-py")]
    import conversion
    import convert_hf_to_gguf
    import transformers

    groups: list[tuple[list[str], list[str]]] = []
    names: dict[str, str | None] = {}
    added: dict[str, Any] = {}
    choose = convert_hf_to_gguf.get_model_class

    def recorded(name: str, **more: Any) -> Any:
        found = choose(_as_spelt(name, conversion.TEXT_MODEL_MAP), **more)
        if not (parts := [part for part in _HANDED_ON if hasattr(found, part)]):
            return _recorded(found, groups, names, added, layers)
        for part in parts:
            setattr(found, part, _recorded(getattr(found, part), groups, names, added, layers))
        return found

    convert_hf_to_gguf.get_model_class = recorded
    _restrict_code(transformers, trusted)
    _excuse_missing_tokens(transformers.AutoTokenizer)
    _keep_old_names(convert_hf_to_gguf.ModelBase)
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", outtype]
    convert_hf_to_gguf.main()

    originals = {kept: name for name, kept in names.items() if kept is not None}
    return {
        "groups": [([originals.get(n, n) for n in source], made) for source, made in groups],
        "skipped": sorted(name for name, kept in names.items() if kept is None),
        "added": added,
    }


def _as_spelt(name: str, known: Any) -> str:
    # The class PhimoeForCausalLM of transformers is a repository's own PhiMoEForCausalLM.
    alike = (other for other in known if other.lower() == name.lower())
    return name if name in known else next(alike, name)


def _reason(error: Exception) -> str:
    """An exception in one line, with the converter's own where its text says nothing by itself."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if f.filename != __file__), frames[-1])
    place = f"{Path(where.filename).name}, line {where.lineno}"
    if isinstance(error, KeyError):
        return f"it looks for {text} and finds none ({place}: {where.line})"
    if isinstance(error, AssertionError) and not text:
        return f"this does not hold: {(where.line or '').removeprefix('assert ')} ({place})"
    if isinstance(error, (NotImplementedError, ValueError, OSError)) and text:
        return text
    return f"{text or type(error).__name__} ({place}: {where.line})"


def _recorded(
    base: Any,
    groups: list[tuple[list[str], list[str]]],
    names: dict[str, str | None],
    added: dict[str, Any],
    layers: list[bool] | None,
) -> Any:
    """The converter's class for a model, which also notes names, and knows one tokenizer more."""
    waiting: list[str] = []

    class Recorded(base):
        model_arch = base.model_arch
        hparams: dict[str, Any]

        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            # Several classes make a plain mapping of what was loaded.
            self.hparams = _WithDefaults(self.hparams, self.dir_model)

        @classmethod
        def filter_tensors(cls, item):
            kept = super().filter_tensors(item)
            names[item[0]] = kept[0] if kept else None
            return kept

        def index_tensors(self, *args, **more):
            found = super().index_tensors(*args, **more)
            # A checkpoint that was trained further has lost its multi-token-prediction layers.
            if self.supports_mtp_export and not _predicts_more(names, self.hparams):
                type(self).no_mtp = True
            return found

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

        def set_gguf_parameters(self):
            super().set_gguf_parameters()
            _correct(self)
            added.update(_complete(self))
            key = f"{self.gguf_writer.arch}.attention.sliding_window_pattern"
            if layers is not None and not any(key in part for part in self.gguf_writer.kv_data):
                self.gguf_writer.add_sliding_window_pattern(layers)
                added[key] = layers

        def set_vocab(self):
            # A vocabulary of another kind than the maker's comes without the maker's files.
            try:
                super().set_vocab()
            except (AttributeError, FileNotFoundError, ValueError):
                if not _splits_as_gpt2(self.dir_model / "tokenizer.json"):
                    raise
                self._set_vocab_gpt2()

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


def _predicts_more(names: dict[str, str | None], config: dict[str, Any]) -> bool:
    layers = {**config, **config.get("text_config", {})}.get("num_hidden_layers", 0)
    parts = [name.split(".") for name in names]
    numbers = [next((int(p) for p in part if p.isdecimal()), 0) for part in parts]
    return any("mtp" in part for part in parts) or max(numbers, default=0) >= layers > 0


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


class _Tokens(dict[str, int]):
    def __missing__(self, token: str) -> None:
        return None


def _excuse_missing_tokens(auto: Any) -> None:
    # Some classes name tokens of their makers' chats, which a vocabulary of somebody else's lacks;
    # the file's metadata do without one whose id is None.
    load = auto.from_pretrained

    def excused(*args, **more):
        tokenizer = load(*args, **more)
        own = tokenizer.get_added_vocab
        tokenizer.get_added_vocab = lambda: _Tokens(own())
        return tokenizer

    auto.from_pretrained = excused


def _complete(model: Any) -> dict[str, Any]:
    """Write what the converter's rule for all text models would, and the model's own did not.

    Some of its classes replace that rule by a list of their own, which leaves out the base of the
    rotary embedding, say; llama.cpp then takes a default. Returns what was added.
    """
    from conversion.base import TextModel
    from gguf import GGUFWriter

    writer = model.gguf_writer
    general = GGUFWriter(path=None, arch=writer.arch)
    model.gguf_writer = general
    try:
        TextModel.set_gguf_parameters(model)
    except Exception as error:  # a class that does not call it may have no use for all of it
        print(f"the general parameters end early: {error!r}", file=sys.stderr)
    finally:
        model.gguf_writer = writer
    own = {key for part in writer.kv_data for key in part}
    found = {name: general.kv_data[0].get(f"{writer.arch}.{name}") for name in _COMPUTING}
    if any(key.endswith("norm_epsilon") or key.endswith("norm_rms_epsilon") for key in own):
        found = {name: value for name, value in found.items() if "norm" not in name}
    scaling = found.get("rope.scaling.type")
    if scaling is not None and scaling.value not in ("linear", "yarn"):
        found = {name: value for name, value in found.items() if "scaling" not in name}
    added = {}
    for name, entry in found.items():
        key = f"{writer.arch}.{name}"
        if entry is not None and key not in own and not _is_default(name, entry.value):
            writer.add_key_value(key, entry.value, entry.type)
            added[key] = entry.value
    return added


def _correct(model: Any) -> None:
    """Put right what some classes compute from sizes that their own models happen to have."""
    config, values = model.hparams, {}
    kind = config.get("model_type")
    if kind in _INNER and config.get(_INNER[kind]):
        values["feed_forward_length"] = config[_INNER[kind]]
    if kind == "ernie4_5_moe" and config.get("moe_num_shared_experts"):
        width = config["moe_intermediate_size"] * config["moe_num_shared_experts"]
        values["expert_shared_feed_forward_length"] = width
    for name, value in values.items():
        for part in model.gguf_writer.kv_data:
            if (key := f"{model.gguf_writer.arch}.{name}") in part:
                part[key].value = value


def _is_default(name: str, value: Any) -> bool:
    return name in _DEFAULTS and struct.pack("f", value) == struct.pack("f", _DEFAULTS[name])


def _keep_old_names(base: Any) -> None:
    load = base.load_hparams

    def with_old_names(folder, *args, **more):
        config = load(folder, *args, **more)
        known = {**config, **_old_names(config)}
        if isinstance(text := config.get("text_config"), dict):
            known["text_config"] = {**text, **_old_names(text)}
        return _WithDefaults(known, folder)

    base.load_hparams = staticmethod(with_old_names)


def _old_names(config: dict[str, Any]) -> dict[str, Any]:
    """What the converter looks for in a configuration and transformers writes otherwise, or not."""
    kind, rope = config.get("model_type"), config.get("rope_parameters") or {}
    factor = rope.get("partial_rotary_factor")
    known: dict[str, Any] = {
        # transformers 5 moved it into rope_parameters.
        "rotary_pct": factor,
        "n_ctx": config.get("n_positions"),
    }
    if kinds := config.get("mlp_layer_types"):
        sparse = (i for i, each in enumerate(kinds) if each != "dense")
        known["first_k_dense_replace"] = next(sparse, len(kinds))
    if kind == "minimax_m2" and "head_dim" in config:
        known["rotary_dim"] = int(config["head_dim"] * (factor or 1))
    if kind in _SIGMOID and not any(key in config for key in _SCORING):
        known["scoring_func"] = "sigmoid"
    if kind == "hunyuan_v1_moe":
        known |= {"moe_intermediate_size": [config["intermediate_size"]], "num_shared_expert": [1]}
    found = {k: v for k, v in known.items() if v is not None and config.get(k) is None}
    if kind == "hunyuan_v1_moe" and isinstance(config.get("moe_topk"), int):
        found["moe_topk"] = [config["moe_topk"]]
    if layers := config.get("moe_layers"):
        # Llama 4's list counts where both are there; the converter reads the step alone.
        steps = range(1, max(layers) + 2)
        even = (s for s in steps if layers == list(range(s - 1, config["num_hidden_layers"], s)))
        if (step := next(even, None)) is not None:
            found["interleave_moe_layer_step"] = step
    if kind in _WHOLE_ROTARY and factor is None:
        found["rope_parameters"] = {**rope, "partial_rotary_factor": 1.0}
    if kind == "phimoe":
        length = {"original_max_position_embeddings": config.get("max_position_embeddings")}
        found["rope_parameters"] = length | rope
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        # Falcon's stands for nothing where all queries share one head.
        found["num_kv_heads"] = 1
    return found


class _WithDefaults(dict[str, Any]):
    """A configuration in which transformers' default is found where a file leaves a key out."""

    def __init__(self, config: dict[str, Any], folder: Path):
        super().__init__(config)
        self._folder = folder

    def __missing__(self, key: str) -> Any:
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(self._folder).get_text_config()
        value = getattr(text, key, None)
        if value is None and key == "head_dim":
            value = text.hidden_size // text.num_attention_heads
        if value is None and key == "rotary_pct":
            value = 1.0
        if value is None:
            raise KeyError(key)
        return value


if __name__ == "__main__":
    main()
