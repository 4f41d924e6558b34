#!/usr/bin/env python3
"""Build the guest: ``build.py [OUT_DIR]`` leaves ``kernel`` and ``initrd`` there; ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guest.image import main

if __name__ == "__main__":
    sys.exit(main())
