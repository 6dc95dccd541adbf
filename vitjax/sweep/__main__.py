"""`python -m vitjax.sweep`."""

import sys

from vitjax.sweep.main import main

if __name__ == "__main__":
    sys.exit(main())
