"""How much a page takes, and the choices and hints that its tabs share with their widgets. Nothing here imports
torch."""

from __future__ import annotations

SLOTS = 4  # contestants of a comparison, and rewards in its mix
MAX_TRAININGS = 3  # compared at once, beside the base
MAX_FILES = 8  # scored at once
MAX_PROMPT_LETTERS = 2000
EMBEDDING_MODELS = ("starter:image/clip", "openai/clip-vit-large-patch14")  # in whose space examples are compared
SCORE_HINT = (
    "Drop a picture, a clip or a sound: every reward that can judge it here does, nothing is fetched, and the "
    "file stays on this machine."
)
LOG_HINT = (
    "A log of what a community did (item, prompt, path, user, event, time) becomes pairs for the social reward. "
    "Pictures are not looked at here, so look-alikes are not searched."
)
INPUTS = {  # what samples can be made from besides a prompt: name -> its label, and what it is
    "source": ("Source", "What is changed: every sample is a new version of it."),
    "mask": ("Mask", "Where it may change. Paint over those places, or give a picture: white changes, black stays."),
    "reference": ("Reference", "Whose subject or style the samples take up."),
    "control": ("Control", "What the samples are laid out by: edges, depth or a pose."),
    "first": ("First frame", "What the clips begin with."),
    "last": ("Last frame", "What the clips end with."),
    "audio": ("Sound", "What the samples go with."),
}
COVERED = ("source", "first", "control")  # what a mask covers: the first of these that a pipeline takes
MEDIA_WORDS = {"image": "a picture", "video": "a clip", "audio": "a sound", "": "a picture, a clip or a sound"}
JUDGED_INPUTS = {"source": "", "mask": "", "first": "image"}  # that rewards compare files with -> modality, "" for any
