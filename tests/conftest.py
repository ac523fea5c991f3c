"""Helpers that lie beside the tests can be imported by their file name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
