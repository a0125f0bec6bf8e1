"""Models to quantize: where they come from, what is known of them, whether they can be loaded."""
