"""EG-AL, explainability-guided active learning (arXiv 2602.13308), its author's variant, and its second term alone.

Each reads the ROI of every pool sample before the query.
"""

from egal_bench.parameters import ConvexLambda, EmptyRoi, Lambda, Scale
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.terms import fill_empty, scaled


@strategy("egal", needs={"roi"}, groups={"egal"})
def egal(pool: Pool, *, lambda_: Lambda = 1.0, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw") -> Query:
    """EG-AL: H + lambda*D, the entropy plus the Grad-CAM's misalignment with the ROI (arXiv 2602.13308)."""
    misalignment = fill_empty(pool.overlap.misalignment, empty_roi)
    return pool.rank(scaled(pool.entropy, normalise) + lambda_ * scaled(misalignment, normalise))


@strategy("egal-convex", needs={"roi"}, groups={"egal"})
def egal_convex(
    pool: Pool, *, convex_lambda: ConvexLambda = 0.3, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw"
) -> Query:
    """EG-AL as in its author's code: lambda*H + (1-lambda)*D with --convex-lambda."""
    misalignment = fill_empty(pool.overlap.misalignment, empty_roi)
    return pool.rank(
        convex_lambda * scaled(pool.entropy, normalise) + (1 - convex_lambda) * scaled(misalignment, normalise)
    )


@strategy("misalignment", needs={"roi"}, groups={"egal", "controls"})
def misalignment(pool: Pool, *, empty_roi: EmptyRoi = "mean") -> Query:
    """Largest misalignment D alone: EG-AL without its uncertainty."""
    return pool.rank(fill_empty(pool.overlap.misalignment, empty_roi))
