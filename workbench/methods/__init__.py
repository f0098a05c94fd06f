"""How media are aligned: one file per paper's box."""

from collections.abc import Mapping
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import Method
from workbench.core.user_code import import_object
from workbench.methods.common.method import check_method, complete_method
from workbench.methods.inference.beam import Beam
from workbench.methods.inference.best_of_n import BestOfN
from workbench.methods.inference.das import DAS
from workbench.methods.inference.ditto import DITTO
from workbench.methods.inference.dno import DNO, BlackBoxDNO
from workbench.methods.inference.fk import FK
from workbench.methods.inference.guidance import Guidance
from workbench.methods.inference.nrg import NRG
from workbench.methods.inference.reno import ReNO
from workbench.methods.inference.reuse import Reuse
from workbench.methods.inference.rewrite import Centred, Rewrite
from workbench.methods.inference.sample import Sample
from workbench.methods.inference.search_over_paths import SearchOverPaths
from workbench.methods.inference.svdd import SVDD
from workbench.methods.inference.zero_order import ZeroOrder
from workbench.methods.training.awm import AWM
from workbench.methods.training.crd import CRD
from workbench.methods.training.d3po import D3PO
from workbench.methods.training.ddpo import DDPO
from workbench.methods.training.dgpo import DGPO
from workbench.methods.training.direct import AlignProp, DRaFT, DRaFTLV
from workbench.methods.training.dpo import DPO
from workbench.methods.training.dragon import DRAGON
from workbench.methods.training.grpo import GRPO
from workbench.methods.training.hypernoise import Corrected, HyperNoise
from workbench.methods.training.instruct_video import InstructVideo
from workbench.methods.training.kto import KTO
from workbench.methods.training.nft import NFT
from workbench.methods.training.parrot import Parrot
from workbench.methods.training.prdp import PRDP
from workbench.methods.training.raft import RAFT
from workbench.methods.training.refl import ReFL
from workbench.methods.training.reward_condition import RewardCondition
from workbench.methods.training.rpo import RPO
from workbench.methods.training.rwr import RWR
from workbench.methods.training.srpo import SRPO

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
    # on examples, told their scores
    "reward_condition": RewardCondition,
}


def find_method(name: str, registry: Mapping[str, Any] = METHODS, where: str = "method") -> Any:
    """What `name` stands for: an entry of `registry`, a class or an instance that somebody made, or the class
    `package.module:Class`. What it leaves out of a method's members has its default then. Raises BadInput."""
    if (method := registry.get(name) if isinstance(name, str) else None) is not None:
        complete_method(method if isinstance(method, type) else type(method))
        return method
    if ":" not in str(name):
        raise BadInput(f"{where}: unknown method {quote_value(name)}; {suggest_nearest(str(name), registry)}")
    cls = import_object(str(name), where)
    check_method(cls, name, where)
    return complete_method(cls)


def trains_weights(method: Method | type[Method]) -> bool:
    """Whether the method moves weights: its run is a training first, and then samples like the base."""
    return "trainable" in method.needs


def name_of(method: Method) -> str:
    """The name by which `find_method` finds the method's class."""
    path = f"{type(method).__module__}:{type(method).__qualname__}"
    return next((name for name, cls in METHODS.items() if type(method) is cls), getattr(type(method), "name", path))
