"""Start the command line, as `python -m langfuse_schema` or the script `langfuse-schema`."""

import gc
import io
import os
import sys
from pathlib import Path


def main() -> None:
    """Import and run the command line."""
    # A closed stream is None. Libraries keep the streams that exist when they are imported.
    sys.stdout, sys.stderr = (s or Path(os.devnull).open("w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The output is not all ASCII, and some terminals encode ASCII only.
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Alembic ignores an error of a write. With PYTHONUNBUFFERED, no flush would raise it.
        sys.stdout.reconfigure(write_through=False)
    try:
        # Imports leave no garbage, and its collection takes a tenth of the time of a start.
        gc.disable()
        from langfuse_schema import cli
        from langfuse_schema.cli import failures

        gc.freeze()
        gc.enable()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before the start\n")
        sys.exit(_BY_SIGINT)
    code: object = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except OSError as error:
        code = failures.print_output_failed(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would fail once more when it flushes the rest at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or failures.print_output_failed(error)
    sys.exit(code)  # type: ignore[arg-type] # as given to SystemExit


_BY_SIGINT = 130

if __name__ == "__main__":
    main()
