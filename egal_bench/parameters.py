"""Parameters that a flag and a strategy share: declared once, with type, bounds, meaning and default."""

from typing import Annotated, Literal

from pydantic import Field

Lambda = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="weight of the misalignment D in `egal`, score = H + lambda*D")
]
ConvexLambda = Annotated[
    float,
    Field(ge=0, le=1, description="weight of the entropy in `egal-convex`, score = lambda*H + (1-lambda)*D"),
]
Scale = Annotated[
    Literal["raw", "minmax", "rank"],
    Field(
        description="scale of H and D over the pool before they are added: `raw` (nats and 1-Dice), `minmax`, `rank`"
    ),
]
EmptyRoi = Annotated[
    Literal["zero", "mean", "exclude"],
    Field(
        description="D of a sample without ROI: `zero`, the pool's `mean`, or `exclude` (queried only when nothing "
        "else is left)"
    ),
]
# fields of Config that only strategies read: a run's numbers depend on them only where its strategy declares them
STRATEGY_FIELDS = ("lambda_", "convex_lambda", "normalise", "empty_roi")
