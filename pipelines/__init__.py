"""How media is made: any diffusers pipeline, left as it is, behind one Policy."""

from .config import PipelineConfig, read
from .loading import load, preflight
from .policy import Policy
from .transitions import CPS, Ancestral, FlowSDE

__all__ = ["CPS", "Ancestral", "FlowSDE", "PipelineConfig", "Policy", "load", "preflight", "read"]
