"""AutoRound: rounding learnt by signed gradient descent, saved as GPTQ or AWQ. CPU and CUDA."""

from pathlib import Path

import qsweep_worker

_FORMATS = {"gptq": "auto_gptq", "awq": "auto_awq"}


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
    tuner = AutoRound(
        model,
        tokenizer,
        scheme={
            "bits": options["bits"],
            "group_size": options["group_size"],
            "sym": options["sym"],
            "data_type": "int",
        },
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
    tuner.quantize_and_save(job.out, format=_FORMATS[options["export"]])
    # It adds a folder of its own for the format.
    found = next(Path(job.out).rglob("config.json")).parent
    if found != Path(job.out):
        for file in found.iterdir():
            file.rename(Path(job.out) / file.name)
    return {"settings": qsweep_worker.read_config(job.out)["quantization_config"]}


if __name__ == "__main__":
    qsweep_worker.run(quantize)
