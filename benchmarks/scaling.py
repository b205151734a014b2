"""Measure the size of the tables and the duration of statements, by the number of rows.

    python benchmarks/scaling.py [--rows 10000 100000 1000000 10000000] [--json FILE]

The benchmark fills langfuse_traces, langfuse_scores and rate_limit_logs with these rows. Each user
has 20 traces, and each trace has one score. Input and output have about 20 characters. Longer texts
add their own length. PostgreSQL compresses rows beyond 2 kB, or stores the texts in another table.
The output is Markdown tables of the bytes of a row, and of medians in milliseconds.

10,000,000 rows take about 15 GB in --directory. Smaller sizes take a few minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growth
from growth import ALL_SCORES, FLOORS, STATEMENTS, Meter
from shared import (
    HISTORY,
    HOT_PATHS,
    PLAN_REVISION,
    Sample,
    clone,
    conditions,
    engine_of,
    milliseconds,
    print_elapsed,
    server_version,
    temporary_server,
    write_json,
)

from langfuse_schema import embedded, migrations
from langfuse_schema.verify import verify

if TYPE_CHECKING:
    import sqlalchemy as sa

    from langfuse_schema.embedded import Server

SETTINGS = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "512MB",
    # The rows are never recovered, so they need no log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
}

AT_PLAN, BY_HAND = "the plan's schema: ", "filtered by hand: "
"""The prefixes of statements in the plan's schema, and of statements without policies."""

INDEXES_LINE = "build the indexes of 20261123000002, online"
RETENTION_LINE = "delete old traces in batches, traces a second"


def main() -> int:
    """Measure each size, and print the tables."""
    options = arguments()
    began = time.monotonic()
    with temporary_server(options.postgresql, options.directory, **SETTINGS) as server:
        content = conditions(server_version(server))
        embedded.prepare(server.url(), example_rows=False)
        migrations.upgrade(server.url(), PLAN_REVISION)
        content["sizes"] = []
        for rows in sorted(options.rows):
            content["sizes"].append(measure(server, rows, options.seconds))
            # Each size is written at once, so the failure of a larger size loses no figures.
            write_json(options.json, content)
    print_tables(content)
    print_elapsed(began)
    return 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="duration for each statement")
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--directory", type=Path, help="parent folder of the databases")
    parser.add_argument("--json", type=Path, help="output file for all figures")
    options = parser.parse_args()
    if min(options.rows) < growth.DAYS * growth.TRACES_OF_A_USER:
        parser.error(f"at least {growth.DAYS * growth.TRACES_OF_A_USER:,} rows are needed")
    return options


def measure(server: Server, rows: int, seconds: float) -> dict[str, Any]:
    """Measure a database of one size, in the plan's schema and then at the last revision.

    Arguments:
        server: a server whose database `postgres` is at the plan's last revision, without rows.
        rows: the number of rows in each table.
        seconds: the duration of the measurement of each statement.
    """
    with clone(server, f"with_{rows}_rows") as database:
        begin = time.monotonic()
        growth.fill(server, database, rows)
        filled = time.monotonic() - begin
        print(f"inserted {rows:,} rows in {filled:.0f} s", file=sys.stderr, flush=True)
        engine = engine_of(server, database)
        meter = Meter(engine, rows, seconds)
        of_plan = meter.measure_all(
            tuple(statement for statement in STATEMENTS if statement.at_plan)
        )
        migrations.upgrade(engine.url, HISTORY.below(HOT_PATHS) or "base")
        built = Sample((milliseconds(lambda: migrations.upgrade(engine.url, HOT_PATHS)),))
        with engine.connect() as connection:
            size = growth.bytes_per_row(connection, rows)
        floor = min(
            (meter.measure(by_hand) for by_hand in FLOORS), key=lambda sample: sample.median
        )
        samples = {
            **meter.measure_all(STATEMENTS),
            **{AT_PLAN + name: sample for name, sample in of_plan.items()},
            BY_HAND + ALL_SCORES: floor,
            "verify": meter.repeat(lambda: milliseconds(lambda: check(engine))),
            INDEXES_LINE: built,
            RETENTION_LINE: meter.delete_old(),
        }
    return {
        "rows": rows,
        "seconds_to_fill": round(filled, 1),
        "bytes_per_row": size,
        "figures": {name: sample.as_json() for name, sample in samples.items()},
    }


def check(engine: sa.Engine) -> None:
    """Verify the database, and exit if it differs."""
    differences = verify(engine.url)
    if differences:
        raise SystemExit("\n".join(str(difference) for difference in differences))


def print_tables(content: dict[str, Any]) -> None:
    """Print the results as Markdown tables."""
    sizes = content["sizes"]
    columns = [f"{size['rows']:,}" for size in sizes]
    versions = ", ".join(f"{name} {found}" for name, found in content["versions"].items())
    print(f"{content['date']}, {content['machine']}, {versions}\n")
    print_line("bytes of a row", *columns)
    print_line("---", *("---:" for _ in columns))
    for table in growth.TABLES:
        for part, name in (("heap", table), ("indexes", f"{table}: all its indexes")):
            print_line(name, *(f"{size['bytes_per_row'][table][part]:.0f}" for size in sizes))
    print()
    print_line("median in milliseconds, if no other unit is given", *columns)
    print_line("---", *("---:" for _ in columns))
    for name in sizes[0]["figures"]:
        print_line(name, *(f"{size['figures'][name]['median']:,.4g}" for size in sizes))


def print_line(*cells: str) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
