"""AutoAWQ: AWQ at 4 bits in GEMM layout, on CPU and CUDA."""

import qsweep_worker


def quantize(job: qsweep_worker.Job) -> dict:
    """Quantize with AutoAWQ's own searches and defaults."""
    import awq.quantize.quantizer as engine
    from awq import AutoAWQForCausalLM

    samples = job.samples()
    qsweep_worker.progress("load")
    model = AutoAWQForCausalLM.from_pretrained(
        job.model,
        torch_dtype=job.torch_dtype,
        device_map={"": job.device},
        trust_remote_code=job.trust_remote_code,
    )
    job.handshake(model.model)
    # It moves each layer to the device and back by itself.
    model.model.cpu()
    engine.tqdm = qsweep_worker.watch
    model.quantize(
        quant_config={
            "w_bit": job.options["bits"],
            "q_group_size": job.options["group_size"],
            "zero_point": True,
            "version": "GEMM",
        },
        # Token ids instead of text: it has no tokenizer here, and needs none.
        calib_data=samples.tolist(),
        max_calib_samples=len(samples),
        max_calib_seq_len=samples.shape[1],
        n_parallel_calib_samples=job.options.get("parallel_samples"),
    )
    qsweep_worker.progress("write")
    model.save_quantized(job.out)
    return {"settings": model.quant_config.to_transformers_dict()}


if __name__ == "__main__":
    qsweep_worker.run(quantize)
