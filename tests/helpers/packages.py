"""Packages of other people, installed for real into a folder of their own."""

import textwrap
from collections.abc import Mapping
from pathlib import Path


def install(site: Path, name: str, files: Mapping[str, str], entry_points: str) -> Path:
    """What ``pip install --target SITE`` leaves behind of a package; returns ``site``."""
    for place, text in files.items():
        file = site / name / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    facts = site / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(textwrap.dedent(entry_points))
    return site


THEIRS = {
    "__init__.py": "",
    "quantizers.py": """
        from dataclasses import dataclass
        from pathlib import Path
        from typing import Any, ClassVar

        from qsweep.base.errors import IncompatibleTrial
        from qsweep.formats.artifact import Artifact
        from qsweep.formats.hf import reference_artifact
        from qsweep.models.facts import read_facts


        @dataclass(frozen=True)
        class Truncated:
            \"\"\"Every weight of a linear layer keeps only so many bits of its mantissa.\"\"\"

            bits: int = 4
            keep_first: bool = False

            method: ClassVar[str] = "truncated"
            backend: ClassVar[str] = "theirs"
            uses_calibration: ClassVar[bool] = False

            def options(self) -> dict[str, Any]:
                return {"bits": self.bits, "keep_first": self.keep_first}

            def version(self) -> str:
                return "1.0"

            def check(self, model) -> None:
                if self.bits > 7:
                    raise IncompatibleTrial(f"bits={self.bits}: bfloat16 has a mantissa of 7")

            def quantize(self, model, calibration, out: Path, progress) -> Artifact:
                import shutil

                import torch
                from safetensors.torch import load_file, save_file

                for file in model.path.iterdir():
                    if file.suffix != ".safetensors":
                        shutil.copy(file, out)
                for file in model.path.glob("*.safetensors"):
                    tensors = load_file(file)
                    for name in list(model.facts.linears)[int(self.keep_first) :]:
                        weight = tensors[f"{name}.weight"].bfloat16().view(torch.int16)
                        tensors[f"{name}.weight"] = (
                            (weight & -(1 << (7 - self.bits))).view(torch.bfloat16)
                        )
                    save_file(tensors, out / file.name, metadata={"format": "pt"})
                whole = reference_artifact(read_facts(out, "theirs"))
                return Artifact(out, "hf", whole.size, ("transformers",))
        """,
    "texts.py": """
        def proverbs():
            return ["A stitch in time saves nine, and a byte in time saves none. "] * 60
        """,
    "tasks.py": """
        from qsweep.tasks.task import TaskResult


        class Endings:
            name = group = "endings"
            capability = "completion"

            def __init__(self, options):
                self.limit = options.limit

            def identity(self):
                return {"task": "theirs.endings", "version": 1, "limit": self.limit}

            def prepare(self):
                pass

            def run(self, lm, progress):
                asked = [("The opposite of hot is", " cold", " hot")] * 2
                asked += [("One, two,", " three", " blue")] * 2
                scores = []
                for context, right, wrong in asked[: self.limit]:
                    a, b = lm.loglikelihoods(lm.pairs(context, [right, wrong]))
                    scores.append(float(a.logprob > b.logprob))
                ids = [str(number) for number in range(len(scores))]
                return TaskResult("acc", scores, ids, chance=0.5)
        """,
    "conf/eval/brief.yaml": """
        defaults: [default, _self_]
        max_windows: 1
        noise_floor: false
        context: 32
        """,
    "conf/__init__.py": "",
    "launch.py": """
        import importlib
        import os
        import sys
        import time
        from dataclasses import dataclass

        from qsweep.launch import Capacity, Event, JobResult


        @dataclass
        class Inline:
            \"\"\"One job after the other, in the caller's own process.\"\"\"

            note: str = ""

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.close()

            def prepare(self):
                os.environ["QSWEEP_DEVICE"] = "cpu"

            def capacity(self, devices):
                return Capacity(1, 10**9)

            def run(self, jobs, *, on_event=print, on_done=print, retry=None):
                self.prepare()
                results, waiting = {}, {job.id: job for job in jobs}
                while waiting:
                    job = next(j for j in waiting.values() if set(j.needs) <= results.keys())
                    del waiting[job.id]
                    module, _, name = job.target.partition(":")
                    started = time.time()
                    try:
                        target = getattr(importlib.import_module(module), name)
                        made = target(job.payload, lambda step, share=None: None)
                        result = JobResult("finished", made, seconds=time.time() - started)
                    except Exception as error:
                        result = JobResult("failed", reason=str(error))
                    results[job.id] = result
                    on_done(job, result)
                    print(f"{self.note} {job.name} {result.status}", file=sys.stderr)
                return results

            def close(self):
                pass
        """,
    "track.py": """
        import json
        from dataclasses import dataclass


        @dataclass
        class Lines:
            \"\"\"A line of JSON for every record.\"\"\"

            file: str = "lines.jsonl"

            def start(self, sweep, warn):
                self.place = sweep.outputs / self.file

            def log(self, record):
                with self.place.open("a") as out:
                    out.write(json.dumps({"name": record.name}) + "\\n")

            def finish(self, records, *, interrupted=False):
                with self.place.open("a") as out:
                    out.write(json.dumps({"records": len(records)}) + "\\n")

            def hints(self, sweep):
                return [f"lines in {self.place}"]
        """,
}
THEIR_ENTRY_POINTS = """
    [qsweep.quantizers]
    truncated = theirs.quantizers:Truncated
    [qsweep.corpora]
    proverbs = theirs.texts:proverbs
    [qsweep.tasks]
    endings = theirs.tasks:Endings
    [qsweep.launchers]
    inline = theirs.launch:Inline
    [qsweep.trackers]
    lines = theirs.track:Lines
    [qsweep.conf]
    theirs = theirs.conf
    """
