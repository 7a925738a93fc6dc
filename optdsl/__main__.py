"""`python -m optdsl`, the same as the `optdsl` command."""

import sys

from optdsl.cli import main

if __name__ == "__main__":
    sys.exit(main())
