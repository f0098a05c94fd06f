"""How media is judged: small classes whose fields are their settings and whose docstring is their help.

Their `spec` can be read without loading anything; weights load on first use, onto the device of the media.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping
from typing import Any

from rewards.audio import audiobox, starter_clap
from rewards.audio.audiobox import Audiobox
from rewards.audio.clap import CLAPScore
from rewards.audio.loudness import Clipping, Gated, Loudness, Silence
from rewards.audio.starter_clap import StarterCLAP
from rewards.encoders import audio, image_text
from rewards.image import aesthetic, imagereward, mps
from rewards.image.aesthetic import Aesthetic
from rewards.image.clip import CLIPScore, StarterCLIP
from rewards.image.hps import HPS
from rewards.image.imagereward import ImageReward
from rewards.image.mps import MPS
from rewards.image.pickscore import PickScore
from rewards.image.simple import Brightness, Colourfulness, Compressibility, Contrast, SaturatedPixels, Sharpness
from rewards.people import social
from rewards.people.learned import Learned
from rewards.people.personal import Personal
from rewards.people.social import Social
from rewards.sets import exemplar
from rewards.sets.audio_sets import FAD, AudioExemplar, AudioKAD, AudioVendi, SongSet
from rewards.sets.exemplar import Exemplar
from rewards.sets.frechet import Frechet
from rewards.sets.mmd import CMMD, KAD, KID
from rewards.sets.prdc import PRDC
from rewards.sets.set_credit import LeaveOneOut, Witness
from rewards.sets.subject_fidelity import Subject
from rewards.sets.vendi import Vendi
from rewards.video.frames import Consistency, Frames, Motion
from rewards.video.starter_clip import StarterVideoCLIP
from rewards.vlm import judge_client
from rewards.vlm.judge import TRANSPORT, Judge, JudgePairs, JudgeRegions
from rewards.vlm.judge_named import (
    EditScore,
    IXCReward,
    QInsight,
    UnifiedReward,
    UnifiedRewardThink,
    UnifiedRewardVideo,
    VideoDimensions,
)
from workbench.core import schema
from workbench.core.types import BadInput, Reward, RewardSpec

from .remote import Remote

REWARDS: dict[str, type] = {
    # exact, without weights
    "brightness": Brightness,
    "contrast": Contrast,
    "colourfulness": Colourfulness,
    "sharpness": Sharpness,
    "saturated_pixels": SaturatedPixels,
    "compressibility": Compressibility,
    # published scorers
    "starter_clip": StarterCLIP,
    "clip": CLIPScore,
    "aesthetic": Aesthetic,
    "pickscore": PickScore,
    "hps": HPS,
    "imagereward": ImageReward,
    "mps": MPS,
    # sound
    "starter_clap": StarterCLAP,
    "starter_video_clip": StarterVideoCLIP,
    "clap": CLAPScore,
    "audiobox": Audiobox,
    "loudness": Loudness,
    "clipping": Clipping,
    "silence": Silence,
    "gated": Gated,
    "fad": FAD,
    "audio_kad": AudioKAD,
    "audio_vendi": AudioVendi,
    "audio_exemplar": AudioExemplar,
    "song_set": SongSet,
    # film
    "frames": Frames,
    "motion": Motion,
    "consistency": Consistency,
    # whole sets, examples, and the credit of single samples in a set
    "frechet": Frechet,
    "kid": KID,
    "kad": KAD,
    "cmmd": CMMD,
    "vendi": Vendi,
    "prdc": PRDC,
    "exemplar": Exemplar,
    "subject": Subject,
    "leave_one_out": LeaveOneOut,
    "witness": Witness,
    # language models that look, behind an OpenAI-compatible server
    "judge": Judge,
    "judge_pairs": JudgePairs,
    "judge_regions": JudgeRegions,
    "unifiedreward": UnifiedReward,
    "unifiedreward_video": UnifiedRewardVideo,
    "unifiedreward_think": UnifiedRewardThink,
    "editscore": EditScore,
    "q_insight": QInsight,
    "ixc_reward": IXCReward,
    "video_dimensions": VideoDimensions,
    # what a community takes up
    "social": Social,
    # tastes fitted to people's own votes
    "learned": Learned,
    "personal": Personal,
    # rewards of another machine
    "remote": Remote,
}


def build(name: str, /, **settings: Any) -> Reward:
    """The reward `name`, of REWARDS or `package.module:Class`, with its settings. Nothing is loaded.

    Raises BadInput for an unknown reward or setting, naming the nearest one, and for a value that a setting can't take.
    """
    return configured(find(name), settings, name)


def find(name: str, registry: Mapping[str, type] = REWARDS, where: str = "reward") -> type:
    """The class that `name` stands for. Raises BadInput."""
    if name in registry:
        return registry[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise BadInput(f"{where}: unknown reward {name!r}; {schema.nearest(name, registry)}")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{where}: can't import {name!r}: {error}") from None
    if not isinstance(cls, type) or not isinstance(getattr(cls, "spec", None), RewardSpec):
        raise BadInput(f"{where}: {name!r} is no reward: it must be a class with a `spec`, a RewardSpec")
    return cls


def configured(cls: type, settings: Mapping[str, Any], where: str) -> Reward:
    """An instance of `cls`, whose version names the settings that are not the usual ones. Raises BadInput."""
    if dataclasses.is_dataclass(cls):
        return versioned(schema.build(cls, settings, where))
    if settings:
        raise BadInput(f"{where}: takes no settings, got {', '.join(settings)}")
    return cls()


def release() -> None:
    """Forget every loaded backbone and head."""
    heads = (
        aesthetic._head,
        audiobox._load,
        audio._load,
        social._head,
        starter_clap._load,
        imagereward._load,
        mps._load,
    )
    for cache in (image_text._load, exemplar._target, judge_client.client, *heads):
        cache.cache_clear()


# settings that say how a score is got, or what the version tells by content
HOW = TRANSPORT | {"dtype", "checkpoint", "rows", "of", "path", "person", "unproven", "names", "token_env", "wire"}


def versioned(reward: Reward) -> Reward:
    """The same, its version telling what was set: scores of other weights or another target are not its scores."""
    changed = [
        f"{f.name}={_short(value) if f.name == 'reference' else value}"
        for f in dataclasses.fields(reward)
        if f.init and f.name not in HOW and (value := getattr(reward, f.name)) != f.default
        if f.default is not dataclasses.MISSING and str(value) not in reward.spec.version
    ]  # references are places, which are told apart and not told
    if changed:
        spec = dataclasses.replace(reward.spec, version=" ".join([reward.spec.version, *changed]))
        object.__setattr__(reward, "spec", spec)
    return reward


def _short(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:8]
