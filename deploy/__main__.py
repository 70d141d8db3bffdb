"""`python -m deploy`: the front door, as the launcher opens it."""

import sys

from deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
