"""The `optdsl` command, also as `python -m optdsl`."""

import gc
import sys


def main() -> int:
    """Runs the command line and returns the exit code."""
    # what modules define stays to the end: looking for garbage in it, while they load and at exit, is lost time
    gc.disable()
    from optdsl import cli

    gc.freeze()
    gc.enable()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
