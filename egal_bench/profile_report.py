"""What a profile found, for a person and for a program: a table, a bar chart, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from egal_bench.files import whole
from egal_bench.measuring import paired_ratio
from egal_bench.profile import Profile
from egal_bench.profile_stages import MEANING

COLOURS = {"stage": "#0072b2", "whole": "#d55e00", "peer": "#999999"}
PEERS = (
    "As documented: float32, PyTorch's default memory format. (same precision): the trunk's precision, channels_last.\n"
    "|ΔDice|: mean difference from ours, computed in the library's precision and convention."
)
WHOLE = ("forward", "scoring", "pass")  # comparable with each other: each runs the network


def stage_table(found: Profile) -> Group:
    """A rich table of the stages and peers, with what must be known to read it below."""
    table = Table(title=_title(found), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for name in ("images/s", "5–95 %", "MB/s", "of forward", "of roof"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _stages(found):
        roof = f"{100 * row['share_of_roof']:.0f} % {row['roof']}" if row["share_of_roof"] else ""
        table.add_row(
            row["stage"], _number(row["rate_q50"]), f"{_number(row['rate_q05'])}–{_number(row['rate_q95'])}",
            _number(row["mb_per_s"]) if row["mb_per_s"] else "", _times(row["share_of_forward"]), roof,
        )  # fmt: skip
    meaning = Table.grid(padding=(0, 2))
    for name, text in MEANING.items():
        meaning.add_row(f" {name}", text)
    return Group(table, Text(_reading(found)), *([_peer_table(found)] if found.peers else []), "", meaning)


def _peer_table(found: Profile) -> Group:
    rows, notes = {row["stage"]: row for row in _peers(found)}, [PEERS]
    table = Table(
        title=f"Peers, on one batch of {found.batch}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    table.add_column("library", no_wrap=True)
    for name in ("images/s", "ours is faster by", "|ΔDice|"):
        table.add_column(name, justify="right", no_wrap=True)
    if "ours" in rows:
        table.add_row("egal-bench", _number(rows["ours"]["rate_q50"]), "", "")
    for name, peer in found.peers.items():
        if peer.why:
            table.add_row(name, "", "not timed", "")
            notes.append(f"{name}: {peer.why}.")
            continue
        middle, low, high = paired_ratio(_seconds(rows[name]), _seconds(rows["ours"]))
        table.add_row(
            name, _number(rows[name]["rate_q50"]), f"{middle:.2f}× [{low:.2f}, {high:.2f}]", f"{peer.difference:.1g}"
        )
    return Group(table, Text("\n".join(notes)))


def _reading(found: Profile) -> str:
    rows = {row["stage"]: row for row in _stages(found)}
    lines = []
    for name in ("scoring", "pass"):
        middle, low, high = paired_ratio(_seconds(rows["forward"]), _seconds(rows[name]))
        lines.append(f"{name}: {middle:.3f} [{low:.3f}, {high:.3f}] of the forward pass alone")
    roofs = f"memcpy {found.roofs['memcpy'] / 1e9:.1f} GB/s, GEMM {found.roofs['GEMM'] / 1e9:.0f} GFLOP/s"
    memory = {"cuda": "GPU memory of a pass"}.get(found.config.device, "Memory of this process during a pass")
    peak = found.rows[0]["peak_mb"]
    return (
        f"{'; '.join(lines)} (medians over rounds, 95 % intervals).\n"
        f"Roofs, measured in the same rounds: {roofs}." + (f"\n{memory}: {peak:,.0f} MB at most." if peak else "")
    )


def draw_stages(found: Profile, path: Path) -> None:
    """Write a PNG: a bar a stage and a peer, images a second on a log scale, with the 5 to 95 % range."""
    rows = [*_stages(found), *(row for row in _peers(found) if row["stage"] != "ours")]
    middle = np.array([row["rate_q50"] for row in rows])
    reach = np.abs(np.array([[row["rate_q05"], row["rate_q95"]] for row in rows]).T - middle)
    kinds = ["peer" if "peers" in row["benchmark"] else "whole" if row["stage"] in WHOLE else "stage" for row in rows]
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(rows))[::-1]
    axis.barh(place, middle, xerr=reach, color=[COLOURS[kind] for kind in kinds], ecolor="#333333", capsize=2)
    for y, rate, high in zip(place, middle, reach[1], strict=True):
        axis.annotate(f" {_number(rate)}", (rate + high, y), va="center", fontsize=9)
    axis.set_yticks(place, [row["stage"] for row in rows])
    axis.set(xscale="log", xlabel="images a second (log scale); orange: with the network's forward pass; grey: peers")
    axis.set_xlim(middle.min() / 4, axis.get_xlim()[1] * 3)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_title(_title(found), fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=130)


def as_json(found: Profile) -> dict[str, Any]:
    """The result of `profile --json`."""
    rates = {row["stage"]: round(row["rate_q50"], 3) for row in _stages(found)}
    share = {row["stage"]: round(row["share_of_forward"], 4) for row in _stages(found)}
    first = found.rows[0]
    return {
        "device": found.config.device, "backbone": found.config.backbone, "size": first["size"], "batch": found.batch,
        "precision": found.config.precision, "images_per_s": rates["pass"], "forward_images_per_s": rates["forward"],
        "share_of_forward": share["pass"], "scoring_share_of_forward": share["scoring"], "stages": rates,
        "peers": {row["stage"]: round(row["rate_q50"], 3) for row in _peers(found) if row["stage"] != "ours"},
        "peak_mb": round(first["peak_mb"], 1) if first["peak_mb"] else None, "out": str(found.path),
    }  # fmt: skip


def _title(found: Profile) -> str:
    first, config = found.rows[0], found.config
    return (
        f"{first['dataset']}: {config.backbone} at {first['size']}², {config.device}, {config.precision}, "
        f"batches of {found.batch}"
    )


def _stages(found: Profile) -> list[dict[str, Any]]:
    return [row for row in found.rows if row["benchmark"] == "profile"]


def _peers(found: Profile) -> list[dict[str, Any]]:
    return [row for row in found.rows if row["benchmark"] != "profile"]


def _seconds(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(row["seconds"])


def _number(value: float) -> str:
    """Three digits: 57.7, 11.3 k, 3.56 M."""
    power = 0 if value < 999.5 else 1 if value < 999.5e3 else 2
    return f"{float(f'{value / 1000**power:.3g}'):g}{('', ' k', ' M')[power]}"


def _times(share: float) -> str:
    return f"{share:.3f}" if share < 2 else f"{_number(share)}×"
