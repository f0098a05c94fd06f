"""The commands of the command line, one file each. A file's `add_command` adds the arguments and the function that runs
the command.

`COMMANDS` is the order in which --help lists them. Heavy imports are inside the functions, so that --help is fast.
"""

COMMANDS = (
    "demo",
    "run",
    "compare",
    "grid",
    "import_media",
    "list",
    "score",
    "agree",
    "learn",
    "study",
    "loop",
    "serve_rewards",
    "suite",
    "export",
    "lora",
    "report",
    "publish",
    "runs",
    "doctor",
    "app",
    "social",
    "starter",
)
