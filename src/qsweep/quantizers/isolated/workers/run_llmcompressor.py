"""llm-compressor: GPTQ and AWQ, saved as compressed-tensors. CPU and CUDA."""

import qsweep_worker


def quantize(job: qsweep_worker.Job) -> dict:
    """Calibrate layer by layer with llm-compressor's own modifiers."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    qsweep_worker.progress("load")
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=job.torch_dtype,
        device_map={"": job.device},
        trust_remote_code=job.trust_remote_code,
    )
    job.handshake(model)
    group = job.options["group_size"]
    weights = QuantizationArgs(
        num_bits=job.options["bits"],
        type="int",
        symmetric=job.options["sym"],
        strategy="channel" if group == -1 else "group",
        group_size=None if group == -1 else group,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    groups = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if job.device == "cpu":
        # It pins memory for a device that is not there, and dies of it.
        IntermediatesCache.pin_memory = lambda *_: None
    samples = job.samples()
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in samples]
    oneshot(
        model=model,
        recipe=_recipe(job.options, groups),
        dataset=torch.utils.data.DataLoader(rows, batch_size=1),  # type: ignore[arg-type]
        num_calibration_samples=len(rows),
        max_seq_length=samples.shape[1],
        pipeline="sequential",
    )
    qsweep_worker.progress("write")
    for name, parameter in model.named_parameters():
        if name.endswith(".weight_scale") and parameter.dtype == torch.float32:
            # Computing in float32 must not make a format of the field larger than it is.
            parameter.data = parameter.data.half()
    model.save_pretrained(job.out, save_compressed=True)
    settings = qsweep_worker.read_config(job.out)["quantization_config"]
    return {"settings": settings}


def _recipe(options: dict, groups: dict) -> list:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if options["method"] == "awq":
        return [AWQModifier(), QuantizationModifier(**groups)]
    ordered = "static" if options["act_group_aware"] else None
    return [GPTQModifier(**groups, dampening_frac=options["damp_percent"], actorder=ordered)]


if __name__ == "__main__":
    qsweep_worker.run(quantize)
