"""How media are aligned: one file per paper's box."""

from .beam import Beam
from .best_of_n import BestOfN
from .das import DAS
from .ditto import DITTO
from .dno import DNO, BlackBoxDNO
from .fk import FK
from .guidance import Guidance
from .nrg import NRG
from .reno import ReNO
from .reuse import Reuse
from .rewrite import Centred, Rewrite
from .sample import Sample
from .search_over_paths import SearchOverPaths
from .svdd import SVDD
from .zero_order import ZeroOrder

METHODS = {
    "sample": Sample,
    "best_of_n": BestOfN,
    "zero_order": ZeroOrder,
    "search_over_paths": SearchOverPaths,
    "reno": ReNO,
    "dno": DNO,
    "dno_black_box": BlackBoxDNO,
    "ditto": DITTO,
    "fk": FK,
    "svdd": SVDD,
    "beam": Beam,
    "das": DAS,
    "guidance": Guidance,
    "nrg": NRG,
    "rewrite": Rewrite,
    "centred": Centred,
    "reuse": Reuse,
}


def name_of(method) -> str:
    return next(name for name, cls in METHODS.items() if type(method) is cls)
