"""How media is made: any diffusers pipeline, left as it is, behind one Policy."""

from .config import PipelineConfig, read
from .loading import load
from .policy import Policy

__all__ = ["PipelineConfig", "Policy", "load", "read"]
