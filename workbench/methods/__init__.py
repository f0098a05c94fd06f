"""How media are aligned: one file per paper's box."""

from .awm import AWM
from .beam import Beam
from .best_of_n import BestOfN
from .crd import CRD
from .d3po import D3PO
from .das import DAS
from .ddpo import DDPO
from .dgpo import DGPO
from .direct import AlignProp, DRaFT, DRaFTLV, InstructVideo
from .ditto import DITTO
from .dno import DNO, BlackBoxDNO
from .dpo import DPO
from .dragon import DRAGON
from .fk import FK
from .grpo import GRPO
from .guidance import Guidance
from .hypernoise import Corrected, HyperNoise
from .kto import KTO
from .nft import NFT
from .nrg import NRG
from .parrot import Parrot
from .prdp import PRDP
from .raft import RAFT
from .refl import ReFL
from .reno import ReNO
from .reuse import Reuse
from .rewrite import Centred, Rewrite
from .rpo import RPO
from .rwr import RWR
from .sample import Sample
from .search_over_paths import SearchOverPaths
from .srpo import SRPO
from .svdd import SVDD
from .zero_order import ZeroOrder

METHODS = {
    # without training
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
    "corrected": Corrected,
    # fine-tuning: by the reward's gradient
    "draft": DRaFT,
    "draft_lv": DRaFTLV,
    "align_prop": AlignProp,
    "instruct_video": InstructVideo,
    "refl": ReFL,
    "srpo": SRPO,
    "hypernoise": HyperNoise,
    # on the denoising chain
    "grpo": GRPO,
    "ddpo": DDPO,
    "d3po": D3PO,
    "prdp": PRDP,
    "parrot": Parrot,
    # on the forward process
    "nft": NFT,
    "awm": AWM,
    "crd": CRD,
    "dgpo": DGPO,
    "dpo": DPO,
    "kto": KTO,
    "rpo": RPO,
    "raft": RAFT,
    "rwr": RWR,
    "dragon": DRAGON,
}


def trains(method) -> bool:
    """Whether the method moves weights: its run is a training first, and then samples like the base."""
    return "trainable" in method.needs


def name_of(method) -> str:
    return next(name for name, cls in METHODS.items() if type(method) is cls)
