"""What judges of edits are asked. The source always comes first, then the edit, or the two that are compared.

As published, by the authors' code: which pictures each question shows and in which order, the turns and labels around
them, the keys and range of the answers, how marks become a score, and the sampling (judge_named.py). The wordings are
this project's own. No published judge has been asked here: scores by these questions may differ from the authors'.

UnifiedReward-Edit also answers with a number for each of two edits. That form is left out: its authors' code reads such
numbers without their sign.
"""

from __future__ import annotations

from rewards.vlm.judge_answers import Rubric, Verdict
from rewards.vlm.judge_questions import IMAGE, SAY_WINNER, WINNER, Preset, Question

UNIFIED_REWARD_EDIT = "CodeGoat24/UnifiedReward-Edit-qwen-7b"


def _edit_marks(first: str, second: str, scale: float = 1.0) -> Rubric:
    """Two marks from 0 to 25 as {"reasoning": ..., "score": [first, second]}."""
    return Rubric((first, second), 0, 25, "score", scale)


EDIT_PRESETS: tuple[Preset, ...] = (
    Preset(
        "editscore",
        "2",
        (
            Question(
                "The first image was edited into the second by this instruction: {prompt}\nGive two scores from 0 "
                "to 25: how far the edit carries the instruction out (0 not at all, 25 completely), and how little "
                "else it changed (0 another picture altogether, 25 nothing beyond the instruction). Answer with a "
                'JSON object: {"reasoning": "...", "score": [instruction, rest]}.',
                _edit_marks("prompt_following", "consistency", 0.4),
                ("source", "media"),
            ),
            Question(
                "This image was made by a machine. Give two scores from 0 to 25: how natural it looks (0 wrong "
                "light, shadows, proportions; 25 natural throughout) and how free it is of artefacts (0 distorted, "
                'blurred or malformed parts; 25 none). Answer with a JSON object: {"reasoning": "...", "score": '
                "[naturalness, artefacts]}.",
                _edit_marks("naturalness", "artefacts", 0.4),
            ),
        ),
        IMAGE,
        "viescore",
        (0.0, 10.0),
        "arXiv:2509.23909",
        "EditScore/EditScore-7B",
        "Apache-2.0",
        system="You are a helpful assistant.",
        label="<img{n}>: ",
    ),
    Preset(
        "unifiedreward_edit",
        "1",
        (
            Question(
                "The first image is the original and the second an edited version of it; they may look alike where "
                "the edit failed. Give two scores from 0 to 25: one for how well the edit does what the instruction "
                "says (0 not at all, 25 perfectly), and one for how little was edited beyond it (0 another scene, 25 "
                "the least edit that does it). Keep the reasoning short. Answer with a JSON object: "
                '{"reasoning": "...", "score": [success, overediting]}.\nEditing instruction: {prompt}',
                _edit_marks("success", "overediting"),
                ("source", "media"),
            ),
        ),
        IMAGE,
        typical=(0.0, 25.0),
        paper="arXiv:2503.05236",
        weights=UNIFIED_REWARD_EDIT,
        licence="MIT",
    ),
    Preset(
        "unifiedreward_edit_quality",
        "1",
        (
            Question(
                "This image was made by a machine. Give two scores from 0 to 25: one for how natural it looks (0 wrong "
                "distances, shadows or light, 25 natural) and one for artefacts (0 large parts are distorted, blurred, "
                "malformed or don't fit together, 25 none). Keep the reasoning short. Answer with a JSON "
                'object: {"reasoning": "...", "score": [naturalness, artefacts]}.',
                _edit_marks("naturalness", "artefacts"),
            ),
        ),
        IMAGE,
        typical=(0.0, 25.0),
        paper="arXiv:2503.05236",
        weights=UNIFIED_REWARD_EDIT,
        licence="MIT",
    ),
    Preset(
        "unifiedreward_edit_pairs",
        "1",
        (
            Question(
                "Given are a source image and two edits of it by the same instruction: edited image 1, then edited "
                "image 2. Which one is better? Weigh whether the right things were changed, all of what was asked, and "
                "nothing else; and whether the result is physically consistent, free of artefacts and good to look at. "
                "Answer with one of: Edited image 1 is better / Edited image 2 is better\nInstruction: {prompt}",
                Verdict(r"\bEdited image 1 is better", r"\bEdited image 2 is better", r"\b(?:tie|equally good)\b"),
                ("source", "first", "second"),
            ),
        ),
        IMAGE,
        typical=(0.0, 1.0),
        paper="arXiv:2503.05236",
        weights=UNIFIED_REWARD_EDIT,
        licence="MIT",
    ),
    Preset(
        "pairs_edit",
        "1",
        (
            Question(
                'The first image was edited twice by the instruction "{prompt}": the second image is edit number '
                "1, the third is edit number 2. Which edit is better: done as asked, all else untouched, natural "
                f"to look at? {SAY_WINNER}",
                WINNER,
                ("source", "first", "second"),
            ),
        ),
        IMAGE,
        typical=(0.0, 1.0),
        paper="arXiv:2508.20751",
    ),
)
