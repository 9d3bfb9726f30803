"""`python -m restq` is the command `restq`."""

from __future__ import annotations

import sys

from restq.cli import main

if __name__ == "__main__":
    sys.exit(main())
