"""``python -m hvbridge``: the same as the ``hvbridge`` command."""

import sys

from hvbridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
