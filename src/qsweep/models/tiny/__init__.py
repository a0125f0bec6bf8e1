"""The embedded model: a small Llama trained on the text that every Python installation carries."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
