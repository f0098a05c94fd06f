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
