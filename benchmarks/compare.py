"""What langfuse-schema costs and saves: beside a bare Alembic project, and beside the plan's SQL.

    python benchmarks/compare.py [--rows 100000] [--json FILE] [--no-limits]

Tables of medians with their quartiles in brackets, the contenders having run by turns: times are
for comparing within a line. Ends with exit code 1 if a limit is not held. At the default sizes
it takes less than 10 minutes on 2 cores that nobody else uses.
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
    own_server,
    print_elapsed,
    print_rows,
    server_version,
    surroundings,
    write_json,
)

PARTS = ("overhead", "live", "rls")


def main() -> int:
    """Measure what the command line asks for, print it, and say whether the limits are held."""
    options = arguments()
    began = time.monotonic()
    with own_server(options.postgresql, options.directory) as server:
        content = surroundings(server_version(server))
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
        content["limits"] += [{"limit": limit.described, "held": limit.held} for limit in found]
        content["rows"] += [row.as_json() for row in rows]
        # Part by part: what has taken minutes is not lost if a later one fails.
        write_json(options.json, content)
    print("limits")
    for limit in limits:
        print(f"  {'held  ' if limit.held else 'MISSED'}  {limit.described}")
    print_elapsed(began)
    return 0 if options.no_limits or all(limit.held for limit in limits) else 1


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=20, help="of each process")
    parser.add_argument("--rows", type=int, nargs="+", default=list(live.ROWS))
    parser.add_argument("--live-runs", type=int, default=3, help="of each migration under load")
    parser.add_argument("--before", type=float, default=live.BEFORE_SECONDS, metavar="SECONDS")
    parser.add_argument("--traces", type=int, default=200_000, help="under row level security")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each statement there")
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--directory", type=Path, help="where the databases are; a temporary one")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--no-limits", action="store_true", help="exit with 0 whatever is found")
    return parser.parse_args()


def measure_overhead(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Beside a bare Alembic project."""
    with own_server(options.postgresql, options.directory) as server:
        return overhead.measure(server, options.runs)


def measure_live(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Beside the plan's SQL, with writers on the tables."""
    results = list(
        live.measure(
            options.postgresql, options.rows, options.live_runs, options.directory, options.before
        )
    )
    return [row for result in results for row in result.table()], live.limits(results)


def measure_rls(options: argparse.Namespace) -> tuple[list[Row], list[Limit]]:
    """Beside the plan's policies and indexes."""
    result = rls.measure(options.postgresql, options.traces, options.directory, options.seconds)
    missed = result.missed_limits()
    limits = [Limit(described, held=False) for described in missed]
    if not missed:
        limits = [Limit(f"every limit of rls.py at {options.traces:,} traces", held=True)]
    return list(result.rows()), limits


if __name__ == "__main__":
    sys.exit(main())
