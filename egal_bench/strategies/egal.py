"""EG-AL, explainability-guided active learning (arXiv 2602.13308), its author's variant, and its second term alone.

Each reads the ROI of every pool sample before the query.
"""

from math import fsum
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from egal_bench.parameters import ConvexLambda, EmptyRoi, Lambda, Scale
from egal_bench.strategies.distances import squared_distances, squared_norms
from egal_bench.strategies.pool import Overlap, Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.selection import followed_by_rest, plus_plus
from egal_bench.strategies.terms import fill_empty, mean, scaled

Diverse = Annotated[
    int,
    Field(
        ge=0,
        description="k-means++ on the features chooses among the diverse*budget best by score; 0: the best ones are "
        "bought",
    ),
]
AreaMatched = Annotated[
    bool, Field(description="control: D is replaced by its residual after a linear regression on the ROI's area")
]
Roi = Annotated[
    Literal["true", "shuffled"],
    Field(
        description="with `shuffled`, a control, D uses the ROI of another pool sample: the areas are the same, the "
        "information is gone"
    ),
]
PARAMETER_NEEDS = {"roi": "shuffled-roi"}  # the pass over the pool then scores with shuffled ROIs


@strategy(
    "egal", needs={"roi"}, parameter_needs=PARAMETER_NEEDS | {"diverse": "features"}, groups={"egal"},
    variants={"diversity": ("diverse=10",), "controls": ("roi=shuffled", "area-matched=true")},
)  # fmt: skip
def egal(
    pool: Pool, *, lambda_: Lambda = 1.0, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw", diverse: Diverse = 0,
    area_matched: AreaMatched = False, roi: Roi = "true",
) -> Query:  # fmt: skip
    """EG-AL: H + lambda*D, the entropy plus the Grad-CAM's misalignment with the ROI (arXiv 2602.13308)."""
    misalignment = matched(pool.overlap) if area_matched else pool.overlap.misalignment
    term = scaled(fill_empty(misalignment, empty_roi), normalise)
    ranking = pool.rank(scaled(pool.entropy, normalise) + lambda_ * term)
    return spread(pool, ranking, diverse * pool.budget) if diverse else ranking


@strategy("egal-convex", needs={"roi"}, groups={"egal"})
def egal_convex(
    pool: Pool, *, convex_lambda: ConvexLambda = 0.3, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw"
) -> Query:
    """EG-AL as in its author's code: lambda*H + (1-lambda)*D with --convex-lambda."""
    misalignment = fill_empty(pool.overlap.misalignment, empty_roi)
    return pool.rank(
        convex_lambda * scaled(pool.entropy, normalise) + (1 - convex_lambda) * scaled(misalignment, normalise)
    )


@strategy(
    "misalignment", needs={"roi"}, parameter_needs=PARAMETER_NEEDS, groups={"egal", "controls"},
    variants={"controls": ("roi=shuffled",)},
)  # fmt: skip
def misalignment(pool: Pool, *, empty_roi: EmptyRoi = "mean", roi: Roi = "true") -> Query:
    """Largest misalignment D alone: EG-AL without its uncertainty."""
    return pool.rank(fill_empty(pool.overlap.misalignment, empty_roi))


def matched(overlap: Overlap) -> np.ndarray:
    """Return D without what a linear regression on the area of the ROI explains, float [N]; NaN without ROI.

    The mean over the samples with ROI stays that of D, so that `--empty-roi` means the same.
    """
    misalignment = overlap.misalignment
    known = ~np.isnan(misalignment)
    if not known.any():
        return misalignment
    area = overlap.roi_area - mean(overlap.roi_area[known])
    deviation = misalignment - mean(misalignment[known])
    squares = fsum(area[known] * area[known])
    slope = fsum(area[known] * deviation[known]) / squares if squares > 0 else 0.0
    return misalignment - slope * area


def spread(pool: Pool, ranking: Query, number: int) -> Query:
    """Return the samples that k-means++ on the features draws among the `number` best of `ranking`, then the others.

    The first centre is the best sample. Samples without score or with features that are not finite are not drawn.
    Cost: number·budget distances.
    """
    best = ranking.indices[:number][np.isfinite(ranking.scores[:number])]
    rows, threads = pool.features[best], pool.config.threads
    candidates = np.flatnonzero(np.isfinite(squared_norms(rows, threads)))
    if not len(candidates):
        return ranking
    centres, _ = plus_plus(
        int(candidates[0]), pool.budget, candidates, lambda i: squared_distances(rows, rows[i], threads), pool.rng
    )
    scores = np.full(len(pool), np.nan)
    scores[ranking.indices] = ranking.scores
    indices = followed_by_rest(best[centres], ranking.indices)
    return Query(indices, scores[indices])
