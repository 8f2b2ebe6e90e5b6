"""The schemas of the tables of a comparison, declared once and checked on read."""

from __future__ import annotations

import pyarrow as pa

PARTITION = ("dataset", "strategy", "seed")  # stored in the names of the folders, so not in the files


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


i64, f32, f64, text, floats = pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.list_(pa.float32())
_RUN = {"dataset": text, "strategy": text, "seed": i64}
SCHEMAS = {
    # one row per round: what the model of that round, trained on `labels` labels, reached on the test set
    "rounds": _schema(
        **_RUN, round=i64, labels=i64, masks=i64, accuracy=f64, balanced_accuracy=f64, macro_auc=f64, macro_f1=f64,
        nll=f64, ece=f64, test_dice=f64, test_size=i64, train_loss=f64, train_accuracy=f64, steps=i64, train_s=f64,
        score_s=f64, eval_s=f64, pool_size=i64, config_hash=text,
    ),
    # one row per label: `round` is the first round trained on it; round 0 is the initial set, which has no scores
    # (NaN); `tied`: its score equals that of a sample that was not bought, so the random order of ties decided
    "selections": _schema(
        **_RUN, round=i64, rank=i64, key=text, label=i64, score=f64, entropy=f64, misalignment=f64,
        intersection=i64, cam_area=i64, roi_area=i64, tied=pa.bool_(),
    ),
    # one row per test sample and round: the logits of the K classes
    "predictions": _schema(**_RUN, round=i64, key=text, group=text, label=i64, logits=floats),
    # one row per explained sample and round: the class map of the predicted class, at the resolution of the features
    "explanations": _schema(
        **_RUN, round=i64, key=text, split=text, predicted=i64, map=floats, height=i64, width=i64,
    ),
    # for the report alone, at the queries 1, 2, 4, 8, …: a random subset of the pool, and the samples bought from it;
    # its ROIs count as no masks, since no strategy reads this table
    "pool": _schema(
        **_RUN, round=i64, key=text, bought=pa.bool_(), entropy=f32, misalignment=f32, predicted_misalignment=f32,
        roi_area=i64, distance=f32,
    ),
}  # fmt: skip
OPTIONAL = ("predictions", "explanations", "pool")  # tables that --keep chooses
TIMINGS = ("train_s", "score_s", "eval_s")  # the only columns in which two runs of the same settings differ
ORDER = {  # columns by which the rows of each table are sorted, within a run
    "rounds": ["round"], "selections": ["round", "rank"], "predictions": ["round", "key"],
    "explanations": ["round", "split", "key"], "pool": ["round", "key"],
}  # fmt: skip


TEXT_COLUMNS = ("key", "group", "split", "config_hash")  # the columns in which values repeat: stored by a dictionary


def file_schema(table: str) -> pa.Schema:
    """Return the schema of one run's file of `table`, without the columns that its folders name."""
    return pa.schema([field for field in SCHEMAS[table] if field.name not in PARTITION])
