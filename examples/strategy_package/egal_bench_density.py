"""Information density: samples that are uncertain, and typical of the pool."""

from typing import Annotated

import numpy as np
from pydantic import Field

from egal_bench import strategy
from egal_bench.strategies import Pool, Query

Beta = Annotated[float, Field(ge=0, le=10, description="weight of the density; 0 is plain entropy")]


@strategy("density", needs={"features"})
def density(pool: Pool, *, beta: Beta = 1.0) -> Query:
    """Entropy times similarity to the pool, to the power of beta (information density, Settles & Craven 2008).

    The similarity is the mean cosine of a sample's features with those of every pool sample, scaled to 0..1.
    """
    lengths = np.linalg.norm(pool.features, axis=1, keepdims=True)
    directions = pool.features / np.where(lengths > 0, lengths, 1.0)
    cosine = directions @ directions.mean(axis=0)  # the mean cosine is the cosine with the mean, so this is linear in N
    return pool.rank(pool.entropy * ((1 + cosine) / 2) ** beta)
