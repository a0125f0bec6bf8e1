"""transformers, imported without libraries that it imports in case somebody wants them.

Where scikit-learn is installed, as with lm-evaluation-harness or MLflow, transformers 5.18 imports it
for one option of assisted generation, and so pandas and scipy.stats; where HQQ and torchao are, those,
for a cache and for quantizers that qsweep has no use for: it reads their checkpoints with the
libraries themselves. Every sweep and worker would pay. Importing this module imports
the modules that ask as if those libraries were missing; all others see what is installed.

transformers offers no setting for it: the modules ask at their head.
"""

import importlib

# The modules of transformers, and what each asks before it imports a library.
ASKED = {
    "transformers.cache_utils": "is_hqq_available",
    "transformers.quantizers.quantizer_hqq": "is_hqq_available",
    "transformers.quantizers.quantizer_torchao": "is_torchao_available",
    "transformers.generation.candidate_generator": "is_sklearn_available",
}


def _import_lean() -> None:
    from transformers import utils

    # Another version may ask in another way.
    real = {name: getattr(utils, name) for name in ASKED.values() if hasattr(utils, name)}
    try:
        for name in real:
            setattr(utils, name, lambda *_: False)
        for module in ASKED:
            importlib.import_module(module)
    finally:
        for name, function in real.items():
            setattr(utils, name, function)


_import_lean()
