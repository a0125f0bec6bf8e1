"""Search: which trials to run, so that few of them tell what to ship. docs/search.md explains it.

``space.py`` says what may vary, ``objectives.py`` what is wanted, ``fidelity.py`` what is cheaper
than a trial and what that proves, ``study.py`` remembers in an Optuna study, ``proposals.py`` asks
Optuna's samplers, ``loop.py`` brings them together, ``answer.py`` and ``page.py`` say what came out.
``command.py`` alone knows Hydra and the launcher.
"""
