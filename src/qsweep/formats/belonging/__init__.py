"""Whether an artifact is one of a model, said before anything is measured. Pure, from headers."""
