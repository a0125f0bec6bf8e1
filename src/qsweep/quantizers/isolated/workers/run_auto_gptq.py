"""AutoGPTQ: GPTQ, on CUDA only."""

import logging
import re

import qsweep_worker


class Reporter(logging.Handler):
    """Hears of each layer from AutoGPTQ's own log."""

    def __init__(self, layers: int):
        super().__init__(logging.INFO)
        self.layers = layers

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on "Start quantizing layer 3/32"."""
        found = re.match(r"Start quantizing layer (\d+)/", record.getMessage())
        if found:
            number = int(found.group(1))
            qsweep_worker.progress(f"layer {number} of {self.layers}", (number - 1) / self.layers)


def quantize(job: qsweep_worker.Job) -> dict:
    """Quantize with AutoGPTQ's own loop."""
    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    samples = job.samples()
    config = BaseQuantizeConfig(
        bits=job.options["bits"],
        group_size=job.options["group_size"],
        desc_act=job.options["desc_act"],
        sym=job.options["sym"],
        damp_percent=job.options["damp_percent"],
    )
    qsweep_worker.progress("load")
    model = AutoGPTQForCausalLM.from_pretrained(
        job.model,
        config,
        torch_dtype=job.torch_dtype,
        trust_remote_code=job.trust_remote_code,
    )
    model.model.to(job.device)
    job.handshake(model.model)
    logging.getLogger("auto_gptq").setLevel(logging.INFO)
    # It moves each layer to the device and back by itself.
    model.model.cpu()
    torch.cuda.empty_cache()
    logging.getLogger("auto_gptq").addHandler(Reporter(model.model.config.num_hidden_layers))
    model.quantize(
        [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in samples]
    )
    qsweep_worker.progress("write")
    model.save_quantized(job.out, use_safetensors=True)
    settings = {**config.to_dict(), "quant_method": "gptq", "checkpoint_format": "gptq"}
    return {"settings": settings}


if __name__ == "__main__":
    qsweep_worker.run(quantize)
