"""The start of the command line: `python -m langfuse_schema`, and the script `langfuse-schema`."""

import gc


def main() -> None:
    """Import the command line, and run it."""
    # Nothing of what is imported is garbage: looking for it is a tenth of the time of a start.
    gc.disable()
    from langfuse_schema import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
