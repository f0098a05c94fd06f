"""The published judges, each by its own name: a preset, and the settings that its publication uses."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.vlm.judge import Judge, JudgePairs
from rewards.vlm.judge_presets import PRESETS
from workbench.core.types import Count, NonNegative


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
    """EditScore of an edit by its instruction, 0 to 10: sqrt(min SC * min PQ), the mean of 4 sampled passes."""

    preset: str = "editscore"
    passes: Count = 4
    temperature: NonNegative = 0.7
    spec = PRESETS["editscore"].spec()


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
