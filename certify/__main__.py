"""`python -m certify`: the command line."""

import sys

from certify.cli import main

sys.exit(main())
