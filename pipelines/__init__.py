"""Pipelines: any diffusers pipeline, unchanged, behind one Policy interface."""

from pipelines.adapters import Lora
from pipelines.components import has_vocoder
from pipelines.config import PipelineConfig, read_config, with_lora
from pipelines.distributed_policy import DistributedPolicy
from pipelines.export import ExportMismatch, PolicyExport, export_policy
from pipelines.loading import as_sibling, describe_loading, load, plan_loading, sampling_view, shares_weights
from pipelines.lora_loading import plan_lora
from pipelines.policy import Policy
from pipelines.trainable_policy import TrainablePolicy
from pipelines.transitions import CPS, Ancestral, FlowSDE
from pipelines.variants import pipeline_label

__all__ = [
    "CPS",
    "Ancestral",
    "DistributedPolicy",
    "ExportMismatch",
    "FlowSDE",
    "Lora",
    "PipelineConfig",
    "Policy",
    "PolicyExport",
    "TrainablePolicy",
    "as_sibling",
    "describe_loading",
    "export_policy",
    "has_vocoder",
    "load",
    "pipeline_label",
    "plan_lora",
    "plan_loading",
    "read_config",
    "sampling_view",
    "shares_weights",
    "with_lora",
]
