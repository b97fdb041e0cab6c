"""The page of the curves: a plot and a table for each."""

# pyright: reportMissingImports=false
# What draws is installed by `make bench-full` only.
from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from benchmarks.report import processor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path as File

    from benchmarks.curves.curve import Curve
    from benchmarks.curves.point import Point


def write(found: Mapping[Curve, Mapping[str, Sequence[Point]]], page: File, *, seconds: float) -> None:
    """Write the page, and a plot beside it for each curve."""
    parts = [
        f"""# How it scales

Written by `make bench-full` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes. Messages are 1 KiB of JSON
with a typed payload, durable, acknowledged one by one after the handler; uvloop; each point in a process of its own on
{processor()}, brokers on the same machine: more processes share the same cores. *Cost* is the processor's time
of the processes that handle the messages, for one message, without what it takes to become a member; *memory* is the
largest such process at its peak.
"""
    ]
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    for curve, brokers in found.items():
        picture = plots / f"{curve.name}.svg"
        _draw(curve, brokers, picture)
        parts.append(_section(curve, brokers, f"{plots.name}/{picture.name}"))
    page.write_text("\n".join(parts))


def _section(curve: Curve, brokers: Mapping[str, Sequence[Point]], picture: str) -> str:
    lines = [
        f"## {curve.title}",
        "",
        f"![{curve.title}]({picture})",
        "",
        f"| broker | {curve.axis} | messages/s | cost, µs | memory, MiB | duplicates |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {broker} | {point.x:,} | {point.rate:,.0f} | {point.cost * 1e6:.0f} | {point.memory / 2**20:.0f} "
        f"| {point.duplicates} |"
        for broker, points in brokers.items()
        for point in points
    ]
    return "\n".join([*lines, "", f"What bends it: {curve.limit}.", ""])


def _draw(curve: Curve, brokers: Mapping[str, Sequence[Point]], picture: File) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "messaging"})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for panel, (label, of) in zip(
        figure.subplots(1, 3),
        (
            ("messages/s", lambda point: point.rate),
            ("cost of a message, µs", lambda point: point.cost * 1e6),
            ("memory, MiB", lambda point: point.memory / 2**20),
        ),
        strict=True,
    ):
        for broker, points in brokers.items():
            if points:
                panel.plot([point.x for point in points], [of(point) for point in points], "o-", label=broker)
        panel.set(xscale="log", xlabel=curve.axis, ylabel=label, ylim=(0, None))
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(picture, metadata={"Date": None})
