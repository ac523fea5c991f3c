"""Helpers that lie beside the tests can be imported by their file name."""

import os
import sys
from pathlib import Path

# Small tensors: more threads than one cost twice the processor time, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
