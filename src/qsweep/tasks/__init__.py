"""Tasks: what a model can still do, by capability, and whether a loss is more than chance."""
