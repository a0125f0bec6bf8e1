"""How much memory the native pass may hold beside the model."""

# Bytes of activations that one run of a decoder layer may hold on the host.
LAYER_BYTES = 2 * 2**30

# Bytes of finished layers that each configuration keeps before it writes them.
SHARD_BYTES = 1_000_000_000

# Outputs of a layer that GPTQ may let know of each other, which takes a matrix of them squared.
COUPLED_OUTPUTS = 4096
