"""What each command does, one function each: parsed arguments in, exit code out."""

from workbench.core.types import BadInput

from .console import Failed
from .runs import compare, demo, export, report, run, suite
from .tools import doctor, learn, list, score, serve_rewards, social, starter

__all__ = [
    "Failed",
    "app",
    "compare",
    "demo",
    "doctor",
    "export",
    "learn",
    "list",
    "report",
    "run",
    "score",
    "serve_rewards",
    "social",
    "starter",
    "suite",
]


def app(args) -> int:
    import app as page

    if not 0 < args.port < 65536:
        raise BadInput(f"--port: {args.port} is no port; give one from 1 to 65535")
    page.serve(args.runs, args.port, args.host, args.auth, args.share)[0].block_thread()
    return 0
