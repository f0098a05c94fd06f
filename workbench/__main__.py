"""`python -m workbench`, which is also what `accelerate launch -m workbench` starts."""

import sys

try:
    from workbench.cli import main

    code = main()
except KeyboardInterrupt:  # while the command line itself is imported
    print("workbench: stopped", file=sys.stderr)
    code = 130
sys.exit(code)
