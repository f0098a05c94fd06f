"""`python -m workbench`, which is also what `accelerate launch -m workbench` starts."""

import runpy

runpy.run_module("workbench.cli", run_name="__main__")
