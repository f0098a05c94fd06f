"""The commands, one file each. A file's `add_command` describes its arguments and names the function that carries it
out.

`COMMANDS` is the order in which --help lists them. Heavy imports happen inside the functions, so that --help is
instant.
"""

COMMANDS = (
    "demo",
    "run",
    "compare",
    "list",
    "score",
    "learn",
    "serve_rewards",
    "suite",
    "export",
    "report",
    "doctor",
    "app",
    "social",
    "starter",
)
