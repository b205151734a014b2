"""Start the command line, as `python -m langfuse_schema` or the script `langfuse-schema`."""

import gc
import io
import os
import sys
from pathlib import Path


def main() -> None:
    """Import and run the command line."""
    # Imports leave no garbage, and its collection takes a tenth of the time of a start.
    gc.disable()
    from langfuse_schema import cli

    gc.freeze()
    gc.enable()
    # A closed stream is None.
    sys.stdout, sys.stderr = (s or Path(os.devnull).open("w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The output is not all ASCII, and some terminals encode ASCII only.
            stream.reconfigure(errors="backslashreplace")
    cli.main()


if __name__ == "__main__":
    main()
