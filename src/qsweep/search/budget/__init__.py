"""The best model of a size: bits per layer, chosen by what each layer costs, then measured."""
