"""transformers, imported without scikit-learn, which it imports in case somebody wants it.

Where that is installed, as with lm-evaluation-harness or MLflow, transformers 5.18 imports it for one
option of assisted generation, and so pandas and scipy.stats. qsweep never generates that way, and
every sweep and worker would pay. Importing this module imports that one module of transformers as
if scikit-learn were missing; all others see what is installed.

transformers offers no setting for it (``transformers/generation/candidate_generator.py`` asks at its
head).
"""

import importlib

# The module of transformers, and what it asks before it imports the library.
MODULE = "transformers.generation.candidate_generator"
ASKED = "is_sklearn_available"


def _import_lean() -> None:
    from transformers import utils

    real = getattr(utils, ASKED, None)
    if real is None:  # another version, which asks in another way
        return
    setattr(utils, ASKED, lambda: False)
    try:
        importlib.import_module(MODULE)
    finally:
        setattr(utils, ASKED, real)


_import_lean()
