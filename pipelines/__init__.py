"""How media is made: any diffusers pipeline, left as it is, behind one Policy."""

from pipelines.distributed_policy import Rows
from pipelines.trainable_policy import TrainablePolicy

from .adapters import Lora
from .config import PipelineConfig, adapted, read
from .export import Exported, Mismatch, export
from .loading import beside, load, preflight, sibling
from .policy import Policy
from .transitions import CPS, Ancestral, FlowSDE

__all__ = [
    "CPS",
    "Ancestral",
    "Exported",
    "FlowSDE",
    "Lora",
    "Mismatch",
    "PipelineConfig",
    "Policy",
    "TrainablePolicy",
    "Rows",
    "adapted",
    "beside",
    "export",
    "load",
    "preflight",
    "read",
    "sibling",
]
