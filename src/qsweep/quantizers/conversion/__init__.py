"""A model as an unquantized GGUF file, and artifacts of files that are made from it."""
