"""Two strategies of a user: one in the earlier form of two attributes, one decorated."""

from typing import Annotated

import numpy as np
from pydantic import Field

from egal_bench.strategies import Pool, Query, strategy


class Earlier:
    """Largest entropy times misalignment, in the earlier form."""

    needs_roi, needs_features = True, False

    def __call__(self, pool):
        return pool.rank(pool.entropy * pool.misalignment)


@strategy("distant", needs={"features"}, groups={"diversity"})
def distant(pool: Pool, *, weight: Annotated[float, Field(ge=0, description="weight of the distance")] = 1.0) -> Query:
    """Largest entropy plus distance to the nearest labelled sample."""
    distance = np.linalg.norm(pool.features[:, None] - pool.labelled_features[None], axis=2).min(1)
    return pool.rank(pool.entropy + weight * distance)
