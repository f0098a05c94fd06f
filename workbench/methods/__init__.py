"""How media are aligned: one file per paper's box."""

from .best_of_n import BestOfN
from .reno import ReNO
from .sample import Sample

METHODS = {"sample": Sample, "best_of_n": BestOfN, "reno": ReNO}


def name_of(method) -> str:
    return next(name for name, cls in METHODS.items() if type(method) is cls)
