"""Draw the two diagrams of the documentation.

    pip install --group benchmark        (pip 25.1 or newer; or: uv sync --group benchmark)
    python benchmarks/plot.py [--directory docs/figures]

It reads compare.json and scaling.json, which compare.py and scaling.py write with --json. It writes
stall.svg and own-scores.svg. With the same version of matplotlib, the same figures give identical
files.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from growth import ALL_SCORES
from scaling import AT_PLAN, BY_HAND

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

FIGURES = Path(__file__).parents[1] / "docs" / "figures"

# The palette of Okabe and Ito is readable with colour blindness. The markers work without colours.
VERMILION, BLUE, BLACK = "#D55E00", "#0072B2", "#000000"

STYLE = {
    "svg.hashsalt": "langfuse-schema",
    # Outlines look the same without the font.
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}

CAPTION_WIDTH = 100


@dataclass(frozen=True)
class Line:
    """A line of a diagram.

    Attributes:
        name: the name in the legend.
        color: the color of the line.
        marker: the marker of the points.
        points: the rows and milliseconds of each point.
        style: the style of the line.
    """

    name: str
    color: str
    marker: str
    points: Sequence[tuple[int, float]]
    style: str = "-"


def main() -> None:
    """Draw both diagrams."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=FIGURES)
    directory = parser.parse_args().directory
    compared, scaled = (_read(directory / f"{name}.json") for name in ("compare", "scaling"))
    mpl.rcParams.update(STYLE)
    _draw(
        directory / "stall.svg",
        "Longest write during the upgrade of the schema\n(lower is better)",
        ("rows of each of the app's three tables", "longest write, ms"),
        _stalls(compared),
        f"8 writers, 200 inserts a second; medians of {_runs(compared)}. {_caption(compared)}",
    )
    _draw(
        directory / "own-scores.svg",
        "All scores of a user with 20 traces, under row level security\n(lower is better)",
        ("rows of langfuse_traces and of langfuse_scores", "median, ms"),
        _own_scores(scaled),
        f"By hand: a query of the owner, to whom no policy applies. {_caption(scaled)}",
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        sys.exit(
            f"{file} does not exist. Create it: python benchmarks/{file.stem}.py --json {file}"
        )


def _stall_rows(content: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows compared with the load alone, and those compared with the plan's SQL."""
    rows = [row for row in content["rows"] if row.get("figure") == "stall"]
    alone = [row for row in rows if row["other_name"] == "the load alone"]
    return alone, [row for row in rows if row not in alone]


def _stalls(content: dict[str, Any]) -> list[Line]:
    alone, plan = _stall_rows(content)
    return [
        Line("the plan's SQL by psql", VERMILION, "s", _points(plan, "other")),
        Line("langfuse-schema", BLUE, "o", _points(plan, "langfuse_schema")),
        Line("the load alone", BLACK, "^", _points(alone, "other"), "--"),
    ]


def _points(rows: list[dict[str, Any]], variant: str) -> list[tuple[int, float]]:
    return sorted((row["rows"], row[variant]["median"]) for row in rows)


def _runs(content: dict[str, Any]) -> str:
    runs = _stall_rows(content)[1][0]["langfuse_schema"]["runs"]
    return "1 run" if runs == 1 else f"{runs} runs"


def _own_scores(content: dict[str, Any]) -> list[Line]:
    def points(prefix: str) -> list[tuple[int, float]]:
        return [
            (size["rows"], size["figures"][prefix + ALL_SCORES]["median"])
            for size in content["sizes"]
        ]

    return [
        Line("the plan's policies", VERMILION, "s", points(AT_PLAN)),
        Line("langfuse-schema", BLUE, "o", points("")),
        Line("by hand", BLACK, "^", points(BY_HAND), "--"),
    ]


def _caption(content: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in content["versions"].items())
    return f"Measured {content['date']} on {content['machine']}; {versions}."


def _draw(
    file: Path, title: str, labels: tuple[str, str], lines: Sequence[Line], caption: str
) -> None:
    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    for line in lines:
        rows, figures = zip(*line.points, strict=True)
        axes.loglog(
            rows, figures, line.style, color=line.color, marker=line.marker, label=line.name
        )
        for row_count, duration in line.points:
            _label(axes, row_count, duration, line)
    axes.margins(x=0.1)
    _scale(axes, lines)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False, loc="upper left")
    figure.supxlabel(
        textwrap.fill(caption, CAPTION_WIDTH), fontsize=7, color="#444444", x=0.01, ha="left"
    )
    # With a date, the same figures would give another file.
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _scale(axes: Axes, lines: Sequence[Line]) -> None:
    """Limit the y axis to whole decades, and label the x axis with the measured sizes."""
    figures = [figure for line in lines for _, figure in line.points]
    axes.set_ylim(10 ** floor(log10(min(figures))), 10 ** ceil(log10(1.5 * max(figures))))
    axes.set_xticks([rows for rows, _ in lines[0].points])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1 else f"{value:,.0f}")
        axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, rows: int, duration: float, line: Line) -> None:
    axes.annotate(
        f"{duration:,.0f}" if duration >= 10 else f"{duration:.2g}",  # noqa: PLR2004 - two digits
        (rows, duration),
        # The labels of the lowest line are below it, so they do not cover the next line.
        xytext=(0, 6 if line.style == "-" else -13),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=line.color,
    )


if __name__ == "__main__":
    main()
