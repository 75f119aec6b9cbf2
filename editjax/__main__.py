"""`python -m editjax` is the same as `editjax`."""

import sys

from editjax.cli import main

sys.exit(main())
