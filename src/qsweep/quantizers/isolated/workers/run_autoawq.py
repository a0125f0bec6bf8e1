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

    class Quantizer(engine.AwqQuantizer):
        """Its scale search with weights that are kept apart while candidates are tried.

        What it takes for a copy of them, ``state_dict()`` moved to the CPU, is the weights
        themselves where they are on the CPU already: the first candidate would stay in them
        (https://github.com/mit-han-lab/llm-awq/issues/163).
        """

        def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *others, **more):
            shared = module2inspect.state_dict
            module2inspect.state_dict = lambda: {k: v.clone() for k, v in shared().items()}
            try:
                return super()._compute_best_scale(
                    x, w_mean, x_mean, module2inspect, *others, **more
                )
            finally:
                del module2inspect.state_dict

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
        quantizer_cls=Quantizer,
    )
    qsweep_worker.progress("write")
    model.save_quantized(job.out)
    return {"settings": model.quant_config.to_transformers_dict()}


if __name__ == "__main__":
    qsweep_worker.run(quantize)
