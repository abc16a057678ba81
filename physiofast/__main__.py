"""`python -m physiofast` is the command `physiofast`."""

import sys

from physiofast.cli import main

if __name__ == "__main__":
    sys.exit(main())
