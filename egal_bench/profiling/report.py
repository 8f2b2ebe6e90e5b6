"""A finished profile as a table for the terminal, a bar chart and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from egal_bench.files import replacing
from egal_bench.models.devices import device_kind
from egal_bench.profiling.measurements import FEW_BATCHES
from egal_bench.profiling.measuring import paired_ratio
from egal_bench.profiling.profile import Profile
from egal_bench.profiling.stages import MEANING

COLOURS = {"stage": "#0072b2", "with network": "#d55e00", "peer": "#999999"}
WITH_NETWORK = ("forward", "scoring", "pass")  # stages that run the network, so that they compare with each other
PEERS_NOTE = (
    "Peers run as documented: float32, PyTorch's default memory format. Those marked (same precision) get the trunk's "
    "precision and channels_last.\n"
    "|ΔDice|: mean difference from egal-bench, computed in the library's precision and convention."
)


def stage_table(profile: Profile) -> Group:
    """Return a rich table of the stages and peers, followed by what each stage does."""
    table = Table(title=_title(profile), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for name in ("images/s", "5–95 %", "MB/s", "of forward", "of roof"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _stage_rows(profile):
        roof = f"{100 * row['share_of_roof']:.0f} % {row['roof']}" if row["share_of_roof"] else ""
        table.add_row(
            row["stage"], _number(row["rate_q50"]), f"{_number(row['rate_q05'])}–{_number(row['rate_q95'])}",
            _number(row["mb_per_s"]) if row["mb_per_s"] else "", _times(row["share_of_forward"]), roof,
        )  # fmt: skip
    meaning = Table.grid(padding=(0, 2))
    for name, text in MEANING.items():
        meaning.add_row(f" {name}", text)
    return Group(table, Text(_notes(profile)), *([_peer_table(profile)] if profile.peers else []), "", meaning)


def _peer_table(profile: Profile) -> Group:
    rows, notes = {row["stage"]: row for row in _peer_rows(profile)}, [PEERS_NOTE]
    title = f"Peers, on one batch of {profile.batch}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("library", no_wrap=True)
    for name in ("images/s", "ours is faster by", "|ΔDice|"):
        table.add_column(name, justify="right", no_wrap=True)
    if "ours" in rows:
        table.add_row("egal-bench", _number(rows["ours"]["rate_q50"]), "", "")
    for name, peer in profile.peers.items():
        if peer.problem:
            table.add_row(name, "", "not timed", "")
            notes.append(f"{name}: {peer.problem}.")
            continue
        middle, low, high = paired_ratio(_seconds(rows[name]), _seconds(rows["ours"]))
        table.add_row(
            name, _number(rows[name]["rate_q50"]), f"{middle:.2f}× [{low:.2f}, {high:.2f}]", f"{peer.difference:.1g}"
        )
    return Group(table, Text("\n".join(notes)))


def _notes(profile: Profile) -> str:
    """Return the lines below the table of stages: shares of the forward pass, roofs and memory."""
    rows = {row["stage"]: row for row in _stage_rows(profile)}
    shares = []
    for name in ("scoring", "pass"):
        middle, low, high = paired_ratio(_seconds(rows["forward"]), _seconds(rows[name]))
        shares.append(f"{name}: {middle:.3f} [{low:.3f}, {high:.3f}] of the forward pass alone")
    roofs = ", ".join(
        f"{name} {rate / 1e9:,.3g} {'GB/s, read and written' if name == 'memcpy' else 'GFLOP/s'}"
        for name, rate in profile.roofs.items()
    )
    on_gpu = device_kind(profile.config.device) == "cuda"
    memory = "GPU memory during a pass" if on_gpu else "Memory of this process during a pass"
    peak = profile.rows[0]["peak_mb"]
    filling = _filling(rows["pass"]["samples"], profile.batch)
    folded = f"\nCopy for passes: {profile.folded}." if profile.folded else ""
    cold = f"\nCold start: compiling took {profile.compiling:.0f} s." if profile.compiling else ""
    return (
        f"{'; '.join(shares)} (medians over rounds, 95 % intervals).{filling}{folded}{cold}\n"
        f"Roofs, measured in the same rounds: {roofs}." + (f"\n{memory}: {peak:,.0f} MB at most." if peak else "")
    )


def _filling(samples: int, batch: int) -> str:
    """Return a line on a pass of few batches; "" for a long one."""
    batches = samples // batch
    if batches >= FEW_BATCHES:
        return ""
    return (
        f"\n`pass` has only {batches} batch{'es' if batches > 1 else ''}, so it is mostly filling the pipeline: for "
        f"the rate of a long pass, measure {FEW_BATCHES * batch:,} images or more (--samples; a larger pool)."
    )


def draw_stages(profile: Profile, path: Path) -> None:
    """Write a PNG: one bar per stage and peer, images per second on a log scale, with the 5 to 95 % range."""
    rows = [*_stage_rows(profile), *(row for row in _peer_rows(profile) if row["stage"] != "ours")]
    middle = np.array([row["rate_q50"] for row in rows])
    reach = np.abs(np.array([[row["rate_q05"], row["rate_q95"]] for row in rows]).T - middle)
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    y = np.arange(len(rows))[::-1]
    axis.barh(y, middle, xerr=reach, color=[COLOURS[_kind(row)] for row in rows], ecolor="#333333", capsize=2)
    for height, rate, above in zip(y, middle, reach[1], strict=True):
        axis.annotate(f" {_number(rate)}", (rate + above, height), va="center", fontsize=9)
    axis.set_yticks(y, [row["stage"] for row in rows])
    axis.set(xscale="log", xlabel="images per second (log scale); orange: with the network's forward pass; grey: peers")
    axis.set_xlim(middle.min() / 4, axis.get_xlim()[1] * 3)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_title(_title(profile), fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def as_json(profile: Profile) -> dict[str, Any]:
    """Return the result of `profile --json`."""
    rates = {row["stage"]: round(row["rate_q50"], 3) for row in _stage_rows(profile)}
    share = {row["stage"]: round(row["share_of_forward"], 4) for row in _stage_rows(profile)}
    first, config = profile.rows[0], profile.config
    return {
        "device": config.device, "backbone": config.backbone, "size": first["size"], "batch": profile.batch,
        "precision": config.precision, "compile": config.compile, "images_per_s": rates["pass"],
        "forward_images_per_s": rates["forward"],
        "share_of_forward": share["pass"], "scoring_share_of_forward": share["scoring"], "stages": rates,
        "peers": {row["stage"]: round(row["rate_q50"], 3) for row in _peer_rows(profile) if row["stage"] != "ours"},
        "peak_mb": round(first["peak_mb"], 1) if first["peak_mb"] else None, "out": str(profile.path),
    }  # fmt: skip


def _title(profile: Profile) -> str:
    first, config = profile.rows[0], profile.config
    return (
        f"{first['dataset']}: {config.backbone} at {first['size']}², {config.device}, {config.precision}"
        f"{', compiled' * (config.compile == 'on')}, batches of {profile.batch}"
    )


def _stage_rows(profile: Profile) -> list[dict[str, Any]]:
    return [row for row in profile.rows if row["benchmark"] == "profile"]


def _peer_rows(profile: Profile) -> list[dict[str, Any]]:
    return [row for row in profile.rows if row["benchmark"] != "profile"]


def _kind(row: dict[str, Any]) -> str:
    """Return the key of COLOURS for the bar of `row`."""
    if row["benchmark"] != "profile":
        return "peer"
    return "with network" if row["stage"] in WITH_NETWORK else "stage"


def _seconds(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(row["seconds"])


def _number(value: float) -> str:
    """Return `value` with three digits: 57.7, 11.3 k, 3.56 M."""
    power = 0 if value < 999.5 else 1 if value < 999.5e3 else 2
    return f"{float(f'{value / 1000**power:.3g}'):g}{('', ' k', ' M')[power]}"


def _times(share: float) -> str:
    return f"{share:.3f}" if share < 2 else f"{_number(share)}×"
