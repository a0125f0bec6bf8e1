"""llm-compressor: RTN, GPTQ and AWQ, saved as compressed-tensors. CPU and CUDA.

Options name either one of compressed-tensors' preset schemes (``scheme``) or a grid of integers
(``bits``, ``group_size``, ``sym``).
"""

import qsweep_worker


def quantize(job: qsweep_worker.Job) -> dict:
    """Calibrate layer by layer with llm-compressor's own modifiers."""
    import torch
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
    scheme = _scheme(job.options)
    if job.device == "cpu":
        # It pins memory for a device that is not there, and dies of it.
        IntermediatesCache.pin_memory = lambda *_: None
    recipe = _recipe(job.options, scheme)
    if job.options["method"] == "rtn" and not _is_calibrated(scheme):
        oneshot(model=model, recipe=recipe, pipeline="datafree")
    else:
        samples = job.samples()
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in samples]
        oneshot(
            model=model,
            recipe=recipe,
            dataset=torch.utils.data.DataLoader(rows, batch_size=1),  # type: ignore[arg-type]
            num_calibration_samples=len(rows),
            max_seq_length=samples.shape[1],
            pipeline="sequential",
        )
    qsweep_worker.progress("write")
    if "scheme" not in job.options:
        for name, parameter in model.named_parameters():
            if name.endswith(".weight_scale") and parameter.dtype == torch.float32:
                # Computing in float32 must not make a format of the field larger than it is.
                parameter.data = parameter.data.half()
    model.save_pretrained(job.out, save_compressed=True)
    settings = qsweep_worker.read_config(job.out)["quantization_config"]
    return {"settings": settings}


def _scheme(options: dict):
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
        preset_name_to_scheme,
    )

    if "scheme" in options:
        return preset_name_to_scheme(options["scheme"], ["Linear"])
    group = options["group_size"]
    weights = QuantizationArgs(
        num_bits=options["bits"],
        type="int",
        symmetric=options["sym"],
        strategy="channel" if group == -1 else "group",
        group_size=None if group == -1 else group,
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def _is_calibrated(scheme) -> bool:
    # Of inputs whose scales are found as they come, nothing is to be known before.
    inputs = scheme.input_activations
    return inputs is not None and inputs.dynamic is not True


def _recipe(options: dict, scheme) -> list:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    ignore = ["lm_head", *options.get("ignore", ())]
    groups = {"config_groups": {"group_0": scheme}, "ignore": ignore}
    if options["method"] == "rtn":
        return [QuantizationModifier(**groups)]
    if options["method"] == "awq":
        # Scales that balance weights as well need a scale per channel at least.
        balanced = scheme.weights.strategy != "tensor"
        return [AWQModifier(duo_scaling=balanced), QuantizationModifier(**groups)]
    ordered = "static" if options["act_group_aware"] else None
    return [GPTQModifier(**groups, dampening_frac=options["damp_percent"], actorder=ordered)]


if __name__ == "__main__":
    qsweep_worker.run(quantize)
