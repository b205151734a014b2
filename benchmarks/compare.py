"""Compare langfuse-schema with a bare Alembic project, and with the plan's SQL.

    python benchmarks/compare.py [--rows 100000] [--json FILE] [--no-limits]

The tables contain medians, with quartiles in brackets. The variants run in turn, so compare only
the times in one line. The exit code is 1 if a limit is missed. At the default sizes, the run takes
less than 10 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import live
import overhead
import rls
from shared import (
    Limit,
    Row,
    conditions,
    print_elapsed,
    print_rows,
    server_version,
    temporary_server,
    write_json,
)

PARTS = ("overhead", "live", "rls")


def main() -> int:
    """Measure, print the tables, and return 1 if a limit is missed."""
    options = arguments()
    began = time.monotonic()
    with temporary_server(options.postgresql, options.directory) as server:
        content = conditions(server_version(server))
    content |= {"limits": [], "rows": []}
    versions = ", ".join(f"{name} {found}" for name, found in content["versions"].items())
    print(f"{content['date']}, {content['machine']}\n{versions}\n")
    limits: list[Limit] = []
    for part in options.parts:
        print(f"measuring: {part} …", file=sys.stderr, flush=True)
        measure = {"overhead": measure_overhead, "live": measure_live, "rls": measure_rls}[part]
        rows, found = measure(options)
        print_rows(rows)
        limits += found
        content["limits"] += [{"limit": limit.text, "met": limit.is_met} for limit in found]
        content["rows"] += [row.as_json() for row in rows]
        # Each part is written at once, so the failure of a later part loses no figures.
        write_json(options.json, content)
    print("limits")
    for limit in limits:
        print(f"  {'met   ' if limit.is_met else 'MISSED'}  {limit.text}")
    print_elapsed(began)
    return 0 if options.no_limits or all(limit.is_met for limit in limits) else 1


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=20, help="runs of each process")
    parser.add_argument("--rows", type=int, nargs="+", default=list(live.ROWS))
    parser.add_argument(
        "--live-runs", type=int, default=3, help="runs of each migration under load"
    )
    parser.add_argument("--before", type=float, default=live.BEFORE_SECONDS, metavar="SECONDS")
    parser.add_argument(
        "--traces", type=int, default=200_000, help="traces for the measurement of RLS"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="duration for each RLS query")
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--directory", type=Path, help="parent folder of the databases")
    parser.add_argument("--json", type=Path, help="output file for all figures")
    parser.add_argument("--no-limits", action="store_true", help="exit with 0 if a limit is missed")
    return parser.parse_args()


def measure_overhead(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Compare with a bare Alembic project."""
    with temporary_server(options.postgresql, options.directory) as server:
        return overhead.measure(server, options.runs)


def measure_live(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Compare with the plan's SQL, while clients write to the tables."""
    results = list(
        live.measure(
            options.postgresql, options.rows, options.live_runs, options.directory, options.before
        )
    )
    return [row for result in results for row in result.table()], live.limits(results)


def measure_rls(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Compare with the plan's policies and indexes."""
    result = rls.measure(options.postgresql, options.traces, options.directory, options.seconds)
    missed = result.missed_limits()
    limits = [Limit(text, is_met=False) for text in missed]
    if not missed:
        limits = [Limit(f"every limit of rls.py at {options.traces:,} traces", is_met=True)]
    return list(result.rows()), limits


if __name__ == "__main__":
    sys.exit(main())
