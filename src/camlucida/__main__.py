"""`python -m camlucida` is the `camlucida` command."""

import sys

from camlucida.cli import main

sys.exit(main())
