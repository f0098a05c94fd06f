"""What goes wrong in a way that callers are told of. Standard library only: pages and commands import it at once."""


class BadInput(ValueError):
    """What the user gave can't work. One sentence: what, where, what to do. The command line exits with 2."""


class Stopped(Exception):
    """Raised by a policy before a denoiser call, once its `stop` event is set."""
