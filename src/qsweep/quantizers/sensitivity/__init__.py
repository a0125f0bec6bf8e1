"""What each layer of a quantized model costs: the KL divergence that it alone would cause, predicted.

``candidates.py`` reads how far an artifact's weights are from the model's, layer by layer;
``estimators.py`` makes nats per token of that and of what the model's output feels of the layer
(:mod:`qsweep.quantizers.native.gradients`); ``predict.py`` brings both together.
"""
