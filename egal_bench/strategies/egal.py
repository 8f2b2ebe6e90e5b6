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
PerClass = Annotated[
    bool,
    Field(
        description="oracle: equal numbers of the best by score are bought of each true class, as in the author's code"
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


@strategy("egal-convex", needs={"roi"}, parameter_needs={"per_class": "pool-labels"}, groups={"egal"})
def egal_convex(
    pool: Pool, *, convex_lambda: ConvexLambda = 0.3, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw",
    per_class: PerClass = False,
) -> Query:  # fmt: skip
    """EG-AL as in its author's code: lambda*H + (1-lambda)*D with --convex-lambda."""
    misalignment = fill_empty(pool.overlap.misalignment, empty_roi)
    ranking = pool.rank(
        convex_lambda * scaled(pool.entropy, normalise) + (1 - convex_lambda) * scaled(misalignment, normalise)
    )
    return best_of_each_class(ranking, pool.labels, len(pool.classes), pool.budget) if per_class else ranking


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


def best_of_each_class(ranking: Query, labels: np.ndarray, classes: int, budget: int) -> Query:
    """Return `ranking` with the best budget/K samples of each class first, all in their order.

    The remainder of the division, and what a class with fewer samples leaves over, goes to the best of the others.
    Samples without score come last.

    Args:
        ranking: the whole pool.
        labels: int [N], the true classes.
        classes: K.
        budget: labels that the query buys.
    """
    ranked_labels = np.where(np.isnan(ranking.scores), -1, labels[ranking.indices])
    first = np.concatenate([np.flatnonzero(ranked_labels == label)[: budget // classes] for label in range(classes)])
    others = np.setdiff1d(np.arange(len(ranked_labels)), first)
    bought = np.sort(np.concatenate([first, others[: budget - len(first)]]))
    order = followed_by_rest(bought, np.arange(len(ranked_labels)))
    return Query(ranking.indices[order], ranking.scores[order])
