"""The published judges, each by its own name: a preset, and the settings that its publication uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rewards.vlm.judge import Judge
from rewards.vlm.judge_pairs import JudgePairs
from rewards.vlm.judge_presets import PRESETS
from workbench.core.types import AtLeast, Count, Natural, NonNegative


@dataclass(frozen=True)
class UnifiedReward(Judge):
    """UnifiedReward 2.0's marks for a picture's alignment, coherence and style: their mean, 1 to 5."""

    preset: str = "unifiedreward"
    spec = PRESETS["unifiedreward"].spec()


@dataclass(frozen=True)
class UnifiedRewardVideo(Judge):
    """UnifiedReward 2.0's marks for a clip's alignment, physics and style: their mean, 1 to 5."""

    preset: str = "unifiedreward_video"
    spec = PRESETS["unifiedreward_video"].spec()


@dataclass(frozen=True)
class UnifiedRewardThink(JudgePairs):
    """Win rates among the samples of one prompt by UnifiedReward-Think, which reasons before it chooses."""

    preset: str = "unifiedreward_think"
    spec = PRESETS["unifiedreward_think"].spec()


@dataclass(frozen=True)
class EditScore(Judge):
    """EditScore of an edit by its instruction, 0 to 10: sqrt(min SC * min PQ), the mean of 4 sampled passes.

    The source is what the prompt comes with, or `references`. Sampled as its authors do, with up to 512 tokens an
    answer; an endpoint that refuses `top_k` is asked without it by `top_k: 0`.
    """

    preset: str = "editscore"
    passes: Count = 4
    temperature: NonNegative = 0.7
    top_p: Annotated[float, AtLeast(0.01)] = 0.9
    top_k: Natural = 20
    max_tokens: Natural = 512
    spec = PRESETS["editscore"].spec()


@dataclass(frozen=True)
class UnifiedRewardEdit(Judge):
    """UnifiedReward-Edit's marks for how an edit follows its instruction and how little else it changes: their mean, 0
    to 25. Greedy: its authors ask for no sampling in a way that a server may not know, and then they sample."""

    preset: str = "unifiedreward_edit"
    max_tokens: Natural = 4096
    spec = PRESETS["unifiedreward_edit"].spec()


@dataclass(frozen=True)
class UnifiedRewardEditQuality(Judge):
    """UnifiedReward-Edit's marks for how natural a picture looks and how free it is of artefacts: their mean, 0 to
    25."""

    preset: str = "unifiedreward_edit_quality"
    max_tokens: Natural = 4096
    spec = PRESETS["unifiedreward_edit_quality"].spec()


@dataclass(frozen=True)
class UnifiedRewardEditPairs(JudgePairs):
    """Win rates by UnifiedReward-Edit among edits of one source by one instruction."""

    preset: str = "unifiedreward_edit_pairs"
    max_tokens: Natural = 4096
    spec = PRESETS["unifiedreward_edit_pairs"].spec()


@dataclass(frozen=True)
class QInsight(Judge):
    """Q-Insight's rating of a picture's quality, 1 to 5, whatever it shows."""

    preset: str = "q_insight"
    spec = PRESETS["q_insight"].spec()


@dataclass(frozen=True)
class IXCReward(Judge):
    """IXC-2.5-Reward's score of a conversation that answers the prompt with the medium. Its server must be a wrapper
    that replies with the number alone, for the model has a score head and does not chat."""

    preset: str = "ixc_reward"
    spec = PRESETS["ixc_reward"].spec()


@dataclass(frozen=True)
class VideoDimensions(Judge):
    """VideoReward's three questions put to any judge: visual and motion quality, text alignment; mean of 1 to 10."""

    preset: str = "video_dimensions"
    fps: NonNegative = 2.0
    spec = PRESETS["video_dimensions"].spec()
