"""What is known of diffusers' pipeline classes before one is imported: which can't be policies, what they make, and
what they take besides a prompt. A class that isn't here needs a config that says it."""

from __future__ import annotations

import re

from workbench.core.types import Modality

FAMILIES = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage")  # with variants of a class

# Pipeline classes that can't be policies, and why.
REFUSED = {
    name: reason
    for reason, names in {
        "its states are tokens, not continuous latents": (
            "AmusedPipeline AmusedImg2ImgPipeline AmusedInpaintPipeline VQDiffusionPipeline LLaDA2Pipeline "
            "DiffusionGemmaPipeline"
        ),
        "it steps many times in parallel": "StableDiffusionParadigmsPipeline",
        "its scheduler has no single step": "ScoreSdeVePipeline KarrasVePipeline",
        "it is two pipelines in one, each with its own loop": (
            "KandinskyCombinedPipeline KandinskyV22CombinedPipeline Kandinsky3CombinedPipeline "
            "StableCascadeCombinedPipeline WuerstchenCombinedPipeline UnCLIPPipeline"
        ),
        "it makes video and sound with two schedulers": (
            "LTX2Pipeline LTX2ImageToVideoPipeline LTX2ConditionPipeline LTX2InContextPipeline LTX2HDRPipeline "
            "LTX2DFRPipeline LTX2DFRTemporalRefinePipeline"
        ),
        "its guardrails pass clips on as arrays, without gradient, and its licence wants them on": (
            "CosmosTextToWorldPipeline CosmosVideoToWorldPipeline Cosmos2TextToImagePipeline "
            "Cosmos2VideoToWorldPipeline Cosmos2_5_PredictBasePipeline Cosmos2_5_TransferPipeline Cosmos3OmniPipeline"
        ),
        "it warps its states between two loops of its own": "TextToVideoZeroPipeline TextToVideoZeroSDXLPipeline",
    }.items()
    for name in names.split()
}

# What names of classes say of their inputs; the rest names a class with the same networks that takes only text.
_KINDS = re.compile(
    "Img2Img|Inpaint|ControlNet|InstructPix2Pix|EditPlus|Edit|Kontext|Fill|Control|ImageToVideo|VideoToVideo|Condition|"
    "AudioToAudio"
)

# Pipelines whose autoencoders can't decode two clips at once.
DECODED_SINGLY = frozenset({"HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"})

# Arguments of a call by which a class would draw noise at every step, so that no step could be repeated.
FIXED_ARGUMENTS = {"LTXConditionPipeline": {"image_cond_noise_scale": 0.0}}

# Components that the class makes itself, and that save_pretrained names in model_index.json without saving them.
OPTIONAL_COMPONENTS = {"LongCatAudioDiTPipeline": frozenset({"scheduler"})}

# Modality and rate of pipelines that are loaded from a folder without a config.
MODALITIES: dict[str, tuple[Modality, float]] = {
    **{
        name: ("image", 0.0)
        for name in [
            "StableDiffusionPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "Flux2Pipeline",
            "Flux2KleinPipeline",
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "SanaPipeline",
            "SanaSprintPipeline",
            "QwenImagePipeline",
            "ZImagePipeline",
            "LatentConsistencyModelPipeline",
            "FluxKontextPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionXLInstructPix2PixPipeline",
            *(f"{family}{kind}Pipeline" for family in FAMILIES for kind in ("Img2Img", "Inpaint")),
            *(f"{family}ControlNetPipeline" for family in FAMILIES),
            "SanaSprintImg2ImgPipeline",
        ]
    },
    "WanPipeline": ("video", 16.0),
    "LTXPipeline": ("video", 25.0),
    "CogVideoXPipeline": ("video", 8.0),
    "HunyuanVideoPipeline": ("video", 24.0),
    "HunyuanVideo15Pipeline": ("video", 24.0),
    "TextToVideoSDPipeline": ("video", 8.0),
    "AnimateDiffPipeline": ("video", 8.0),
    "WanImageToVideoPipeline": ("video", 16.0),
    "LTXImageToVideoPipeline": ("video", 25.0),
    "LTXConditionPipeline": ("video", 25.0),
    "CogVideoXImageToVideoPipeline": ("video", 8.0),
    "HunyuanVideoImageToVideoPipeline": ("video", 24.0),
    "HunyuanVideo15ImageToVideoPipeline": ("video", 24.0),
    "WanVideoToVideoPipeline": ("video", 16.0),
    "CogVideoXVideoToVideoPipeline": ("video", 8.0),
    "AudioLDM2Pipeline": ("audio", 16000.0),
    "MusicLDMPipeline": ("audio", 16000.0),
    "StableAudioPipeline": ("audio", 44100.0),
    "StableAudio3Pipeline": ("audio", 44100.0),
    "StableAudio3AudioToAudioPipeline": ("audio", 44100.0),
    "StableAudio3InpaintPipeline": ("audio", 44100.0),
    "AceStepPipeline": ("audio", 48000.0),
    "LongCatAudioDiTPipeline": ("audio", 24000.0),
}

# What classes take besides a prompt: name of the input (workbench.core.inputs.NAMES) -> argument of the call.
SOURCE, MASKED, FIRST = {"source": "image"}, {"source": "image", "mask": "mask_image"}, {"first": "image"}
INPUTS: dict[str, dict[str, str]] = {
    "StableDiffusionInstructPix2PixPipeline": SOURCE,
    "StableDiffusionXLInstructPix2PixPipeline": SOURCE,
    "FluxKontextPipeline": SOURCE,
    "QwenImageEditPipeline": SOURCE,
    "QwenImageEditPlusPipeline": SOURCE,
    **{f"{family}Img2ImgPipeline": SOURCE for family in FAMILIES},
    "SanaSprintImg2ImgPipeline": SOURCE,
    **{f"{family}InpaintPipeline": MASKED for family in FAMILIES},
    "FluxFillPipeline": MASKED,
    "FluxControlPipeline": {"control": "control_image"},
    "StableDiffusionControlNetPipeline": {"control": "image"},
    "StableDiffusionXLControlNetPipeline": {"control": "image"},
    "StableDiffusion3ControlNetPipeline": {"control": "control_image"},
    "FluxControlNetPipeline": {"control": "control_image"},
    "QwenImageControlNetPipeline": {"control": "control_image"},
    "WanImageToVideoPipeline": FIRST,
    "LTXImageToVideoPipeline": FIRST,
    "LTXConditionPipeline": FIRST,
    "CogVideoXImageToVideoPipeline": FIRST,
    "HunyuanVideoImageToVideoPipeline": FIRST,
    "HunyuanVideo15ImageToVideoPipeline": FIRST,
    **{f"{family}VideoToVideoPipeline": {"source": "video"} for family in ("Wan", "CogVideoX")},
    "StableAudio3AudioToAudioPipeline": {"source": "audio"},
    "StableAudio3InpaintPipeline": {"source": "audio"},
}

# Those of them that make media of a prompt alone too, where their input is left out.
OPTIONAL_INPUTS = frozenset({"FluxKontextPipeline", "LTXConditionPipeline"})

# Classes that lay the source under the mask again after every step, so that parts of a state are not sampled: a
# policy gradient, which needs the probability of a state, isn't defined for them.
BLENDING = frozenset(f"{family}InpaintPipeline" for family in ("StableDiffusion3", "Flux", "QwenImage")) | {
    "LTXConditionPipeline"
}

# Classes that round the number of steps that `strength` leaves down; all others round it up.
TRUNCATING = frozenset(f"{family}{kind}Pipeline" for family in FAMILIES[:2] for kind in ("Img2Img", "Inpaint"))


def text_class(name: str) -> str:
    """The class with the networks of this one that takes only text: FluxPipeline of FluxKontextPipeline."""
    return _KINDS.sub("", name)
