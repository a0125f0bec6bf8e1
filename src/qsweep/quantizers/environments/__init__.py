"""Environments for quantizers whose libraries cannot share qsweep's own.

``spec.py`` says what is in one, ``interpreter.py`` finds a Python for it, ``create.py`` makes it
whole or not at all, ``choice.py`` is ``quant.env``: which one a trial uses. From a shell:

    qsweep env list|create NAME|check NAME|remove NAME
"""
