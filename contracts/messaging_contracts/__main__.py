"""`python -m messaging_contracts`: see `messaging_contracts.cli`."""

from __future__ import annotations

import sys

from messaging_contracts.cli import main

if __name__ == "__main__":
    sys.exit(main())
