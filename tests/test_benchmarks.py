"""The benchmarks run, and their bare project creates the same schema. No test asserts a speed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from tests.helpers.databases import CHECKOUT, Database, run

if TYPE_CHECKING:
    from pathlib import Path

BENCHMARKS = CHECKOUT / "benchmarks"


def benchmark(name: str, *arguments: str) -> str:
    """Run a benchmark that must succeed, and return its output."""
    outcome = run(sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_bare_project_creates_same_schema_as_revisions(
    database: Database, second_database: Database, tmp_path: Path
) -> None:
    write = "import sys, pathlib, bare; print(bare.create(pathlib.Path(sys.argv[1])))"
    written = run(sys.executable, "-c", write, str(tmp_path), PYTHONPATH=str(BENCHMARKS))
    assert written.code == 0, written.stderr
    upgraded = run(
        *(sys.executable, "-m", "alembic", "-c", written.stdout.strip(), "upgrade", "head"),
        DATABASE_URL=database.text,
    )
    assert upgraded.code == 0, upgraded.stderr
    migrations.upgrade(second_database.url)
    bare, packaged = (
        {
            name: table
            for name, table in found.catalog().tables.items()
            if table.name != "alembic_version"
        }
        for found in (database, second_database)
    )
    assert bare == packaged


@pytest.mark.slow
def test_compare_benchmark_prints_and_writes_figures(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "compare.json"
    printed = benchmark(
        "compare",
        *("--no-limits", "--runs", "1", "--rows", "1000", "2000", "--live-runs", "1"),
        *("--before", "0.5", "--traces", "2000", "--seconds", "0.01"),
        *("--directory", str(scratch), "--json", str(file)),
    )
    assert "upgrade head, empty database, in-process" in printed
    content = json.loads(file.read_text())
    assert {row["rows"] for row in content["rows"] if row.get("figure") == "stall"} == {1000, 2000}
    assert all(row["langfuse_schema"]["median"] > 0 for row in content["rows"])
    assert len(content["limits"]) > 5


@pytest.mark.slow
def test_compare_benchmark_exits_1_when_limit_is_missed(scratch: Path) -> None:
    # PostgreSQL does not use an index for so few rows, although a limit of rls.py expects it.
    outcome = run(
        *(sys.executable, str(BENCHMARKS / "compare.py"), "--parts", "rls"),
        *("--traces", "2000", "--seconds", "0.01", "--directory", str(scratch)),
    )
    assert outcome.code == 1, outcome.stderr
    assert "MISSED  claim: it does not use the partial index alone" in outcome.stdout


def measure_growth(scratch: Path, file: Path) -> str:
    """Run scaling.py with few rows, and return its output."""
    return benchmark(
        "scaling",
        *("--rows", "2000", "4000", "--seconds", "0.01"),
        *("--directory", str(scratch), "--json", str(file)),
    )


@pytest.mark.slow
def test_scaling_benchmark_writes_figures_of_every_size(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    assert "| bytes of a row | 2,000 | 4,000 |" in measure_growth(scratch, file)
    sizes = json.loads(file.read_text())["sizes"]
    assert [size["rows"] for size in sizes] == [2000, 4000]
    assert all(figure["median"] > 0 for size in sizes for figure in size["figures"].values())


@pytest.mark.slow
def test_plot_benchmark_draws_identical_pictures_from_same_figures(
    scratch: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    measure_growth(scratch, tmp_path / "scaling.json")
    benchmark(
        "compare",
        *("--no-limits", "--parts", "live", "--rows", "1000", "2000", "--live-runs", "1"),
        *("--before", "0.5", "--directory", str(scratch)),
        *("--json", str(tmp_path / "compare.json")),
    )
    drawn = []
    for _ in range(2):
        benchmark("plot", "--directory", str(tmp_path))
        drawn.append([(tmp_path / name).read_bytes() for name in ("stall.svg", "own-scores.svg")])
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_public_history_leaves_same_database_with_six_runners(scratch: Path) -> None:
    # The other history is too large for a test.
    printed = benchmark("histories", "--only", "optuna", "--directory", str(scratch))
    assert printed.count("6 runners") == printed.count("one ran the revisions") == 3
