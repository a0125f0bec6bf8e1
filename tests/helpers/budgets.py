"""Candidates and rows of made-up figures, for what is pure."""

from qsweep.results.record import ArtifactFacts, Figures, Measurement, Record, Row
from qsweep.search.budget.costs import Candidate, Costs, costs_of

LAYERS = tuple(f"layers.{n}.{kind}" for n in range(2) for kind in ("q_proj", "down_proj"))
WEIGHTS = 1000
EMBEDDING = "embed_tokens"


def candidate(bits: int, *, embedding: int | None = None, rest: int = 8000) -> Candidate:
    """All layers in so many bits; the first is felt a hundred times as much as the others."""
    names = (*LAYERS, EMBEDDING) if embedding else LAYERS
    own = {name: embedding if embedding and name == EMBEDDING else bits for name in names}
    return Candidate(
        name=f"{bits} bits" + (f" e{embedding}" if embedding else ""),
        values={name: f"bits:{width},group_size:64" for name, width in own.items()},
        bits={name: width * WEIGHTS for name, width in own.items()},
        losses={n: 4.0**-width * (100 if n == LAYERS[0] else 1) for n, width in own.items()},
        bytes=(sum(own.values()) * WEIGHTS + rest) // 8,
        linear_bits=bits * WEIGHTS * len(LAYERS),
        linear_weights=WEIGHTS * len(LAYERS),
    )


def costs(*candidates: Candidate) -> Costs:
    """Costs of candidates, each layer by itself."""
    names = candidates[0].losses
    return costs_of(candidates, [(name,) for name in names], dict.fromkeys(LAYERS))


def row(key: str, size: int, kld: float | None, bpw: float = 3.0) -> Row:
    """A measured artifact of so many bytes."""
    artifact = ArtifactFacts(key=key, size_gb=size / 1e9, bpw=bpw)
    metrics = Figures({"kld": kld, "ppl_ratio": 1.0})
    measurement = Measurement(corpus="c", preset="paper", metrics=metrics, primary=True)
    record = Record(key, "finished", key, artifact=artifact, measurements=(measurement,))
    return Row(record, measurement, key)
