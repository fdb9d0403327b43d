"""`python -m overnight.services SECONDS`: the supervisor, started by `overnight up` and `overnight run`."""

import sys

from overnight.services.supervisor import main

sys.exit(main(float(sys.argv[1])))
