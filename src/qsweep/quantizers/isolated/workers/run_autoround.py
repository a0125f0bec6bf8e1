"""AutoRound: rounding learnt by signed gradient descent, saved as GPTQ, AWQ or GGUF. CPU and CUDA."""

from pathlib import Path
from typing import Any

import qsweep_worker

_FORMATS = {"gptq": "auto_gptq", "awq": "auto_awq"}


def name_pre_tokenizer(name: str) -> None:
    """Let AutoRound's copy of llama.cpp's converter take ``name`` where it knows no better.

    It tells pre-tokenizers apart by a hash of one text's token ids, which no newly trained
    vocabulary can match.
    """
    from auto_round.export.export_to_gguf.llama_cpp_conversion import ConversionContext

    choose = ConversionContext.get_model_class

    def chosen(self: Any, *args: Any, **more: Any) -> Any:
        base = choose(self, *args, **more)

        class Named(base):  # type: ignore[misc, valid-type]
            model_arch = base.model_arch

            def get_vocab_base_pre(self, tokenizer: Any) -> str:
                try:
                    return str(super().get_vocab_base_pre(tokenizer))
                except NotImplementedError:
                    return name

        return Named

    ConversionContext.get_model_class = chosen


def quantize(job: qsweep_worker.Job) -> dict:
    """Tune with AutoRound's own loop, on the given tokens only."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    qsweep_worker.progress("load")
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=job.torch_dtype, trust_remote_code=job.trust_remote_code
    )
    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=job.trust_remote_code)
    job.handshake(model)
    samples = job.samples()
    options = job.options
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in samples]
    batch = min(8, len(rows))
    if options["export"] == "gguf":
        form = f"gguf:{options['type'].lower()}"
        scheme: Any = form
        if options["pre_tokenizer"]:
            name_pre_tokenizer(options["pre_tokenizer"])
    else:
        form = _FORMATS[options["export"]]
        scheme = {key: options[key] for key in ("bits", "group_size", "sym")} | {"data_type": "int"}
    tuner = AutoRound(
        model,
        tokenizer,
        scheme=scheme,
        dataset=torch.utils.data.DataLoader(rows, batch_size=batch),  # type: ignore[arg-type]
        iters=options["iters"],
        nsamples=len(rows),
        seqlen=samples.shape[1],
        batch_size=batch,
        seed=options["seed"],
        device_map=job.device,
        # Compiling takes a minute, which pays on large models only.
        enable_torch_compile=job.device != "cpu",
    )
    qsweep_worker.progress("tune")
    tuner.quantize_and_save(job.out, format=form)
    if options["export"] == "gguf":
        return {"settings": {}}
    # It adds a folder of its own for the format.
    found = next(Path(job.out).rglob("config.json")).parent
    if found != Path(job.out):
        for file in found.iterdir():
            file.rename(Path(job.out) / file.name)
    return {"settings": qsweep_worker.read_config(job.out)["quantization_config"]}


if __name__ == "__main__":
    qsweep_worker.run(quantize)
