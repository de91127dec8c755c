"""`python -m medmvl` is the command `medmvl`."""

import sys

from medmvl.cli.main import main

sys.exit(main())
