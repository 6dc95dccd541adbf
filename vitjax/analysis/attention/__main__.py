"""`python -m vitjax.analysis.attention`."""

import sys

from vitjax.analysis.attention.main import main

if __name__ == "__main__":
    sys.exit(main())
