"""Every reward by the name under which configs, the command line and the app know it."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.audio import audiobox
from rewards.audio.audiobox import Audiobox
from rewards.audio.clap import CLAPScore
from rewards.audio.loudness import Clipping, Gated, Loudness, Silence
from rewards.audio.starter_clap import StarterCLAP
from rewards.edits.directional_clip import DirectionalCLIP
from rewards.edits.first_frame import FirstFrame
from rewards.edits.identity import AudioIdentity, Identity
from rewards.edits.starter_edit_clip import StarterEditCLIP
from rewards.edits.unchanged import Background, Unchanged
from rewards.encoders import image_text
from rewards.encoders.load_audio import release_audio_encoders
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
from rewards.remote import Remote
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
from rewards.vlm.judge import Judge
from rewards.vlm.judge_named import (
    EditScore,
    IXCReward,
    QInsight,
    UnifiedReward,
    UnifiedRewardEdit,
    UnifiedRewardEditPairs,
    UnifiedRewardEditQuality,
    UnifiedRewardThink,
    UnifiedRewardVideo,
    VideoDimensions,
)
from rewards.vlm.judge_pairs import JudgePairs
from rewards.vlm.judge_regions import JudgeRegions
from workbench.core import schema
from workbench.core.errors import BadInput
from workbench.core.text import quote_value
from workbench.core.types import RewardSpec
from workbench.core.user_code import import_object

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
    # what was made from a source
    "unchanged": Unchanged,
    "background": Background,
    "identity": Identity,
    "directional_clip": DirectionalCLIP,
    "starter_edit_clip": StarterEditCLIP,
    "audio_identity": AudioIdentity,
    "first_frame": FirstFrame,
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
    # vision-language judges, behind an OpenAI-compatible server
    "judge": Judge,
    "judge_pairs": JudgePairs,
    "judge_regions": JudgeRegions,
    "unifiedreward": UnifiedReward,
    "unifiedreward_video": UnifiedRewardVideo,
    "unifiedreward_think": UnifiedRewardThink,
    "editscore": EditScore,
    "unifiedreward_edit": UnifiedRewardEdit,
    "unifiedreward_edit_quality": UnifiedRewardEditQuality,
    "unifiedreward_edit_pairs": UnifiedRewardEditPairs,
    "q_insight": QInsight,
    "ixc_reward": IXCReward,
    "video_dimensions": VideoDimensions,
    # popularity in a community
    "social": Social,
    # tastes fitted to people's own votes
    "learned": Learned,
    "personal": Personal,
    # rewards served by another process
    "remote": Remote,
}


def find_reward(name: str, registry: Mapping[str, type] = REWARDS, where: str = "reward") -> type:
    """The class that `name` stands for. Raises BadInput."""
    if name in registry:
        return registry[name]
    if ":" not in name:
        raise BadInput(f"{where}: unknown reward {quote_value(name)}; {schema.suggest_nearest(name, registry)}")
    cls = import_object(name, where)
    if not isinstance(cls, type) or not isinstance(getattr(cls, "spec", None), RewardSpec):
        raise BadInput(f"{where}: {quote_value(name)} is no reward: it must be a class with a `spec`, a RewardSpec")
    return cls


def release_weights() -> None:
    """Forget every loaded backbone and head."""
    heads = (
        aesthetic._load_head,
        audiobox._load_cached,
        social._load_head,
        imagereward._load_cached,
        mps._load_cached,
    )
    for cache in (image_text._load_cached, exemplar._load_target, judge_client.shared_client, *heads):
        cache.cache_clear()
    release_audio_encoders()
