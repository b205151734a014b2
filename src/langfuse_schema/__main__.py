"""The start of the command line: `python -m langfuse_schema`, and the script `langfuse-schema`."""

import gc
import io
import sys


def main() -> None:
    """Import the command line, and run it."""
    # Nothing of what is imported is garbage: looking for it is a tenth of the time of a start.
    gc.disable()
    from langfuse_schema import cli

    gc.freeze()
    gc.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Our text is not all ASCII, and a terminal's encoding may be.
            stream.reconfigure(errors="backslashreplace")
    cli.main()


if __name__ == "__main__":
    main()
