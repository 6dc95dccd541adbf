"""`python -m vitjax.sweep`."""

import sys

from vitjax.sweep.main import main

sys.exit(main())
