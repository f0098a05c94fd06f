"""What judges are asked and how their answers become numbers: frozen data, one entry a published judge or protocol.
Those of edits are in edit_presets.py.

The wordings are this project's own; what a published judge was trained to answer (the keys, the lines, the scale) is
kept to the letter. To put a publication's exact words, give them as `wording`.
"""

from __future__ import annotations

from rewards.vlm.edit_presets import EDIT_PRESETS
from rewards.vlm.judge_answers import Lines, Rubric, Verdict, YesNo
from rewards.vlm.judge_questions import IMAGE, SAY_WINNER, VIDEO, WINNER, Preset, Question


def _axis_lines(*names: str) -> Lines:
    return Lines(tuple(n.lower() for n in names), tuple(rf"{n} Score \(1-5\):" for n in names), 1, 5)


def _unified_wording(third: str) -> str:
    return (
        "Below is a generated {medium} and the caption it was made from. Judge the {medium} on three axes, each a "
        "number from 1 to 5:\n- Alignment Score: does it show what the caption says?\n" + third + "\n- Style Score: "
        "how appealing does it look, whatever the caption?\nAnswer in exactly these lines:\n%s\n"
        "Text Caption: [{prompt}]"
    )


def _answer_lines(*names: str) -> str:
    return "\n".join(f"{n} Score (1-5): {letter}" for n, letter in zip(names, "XYZ", strict=True))


def _ask_rating(what: str, key: str, low: int = 1, high: int = 10) -> str:
    return f'{what} Answer with a JSON object: {{"{key}": a number from {low} (very poor) to {high} (excellent)}}.'


_BETTER = Verdict(r"\b(?:Image|Video) 1 is better", r"\b(?:Image|Video) 2 is better", r"\b(?:tie|equally good)\b")
_HALVES = " (of a video, the first half of the frames is number 1 and the second half number 2)"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *EDIT_PRESETS,
        Preset(
            "yes_no",
            "1",
            (Question('Is "{prompt}" what this {medium} shows? Answer with Yes or No alone.', YesNo()),),
            typical=(0.0, 1.0),
            paper="arXiv:2404.01291",
        ),
        Preset(
            "rubric",
            "1",
            (
                Question(
                    'Judge this generated {medium}, asked for with the words "{prompt}", strictly and on three counts, '
                    "each from 0 to 10: alignment (all that was asked for is there, with the right count, colours "
                    "and places), realism (no malformed parts, no artefacts) and aesthetics. Answer with a JSON object "
                    "with the keys alignment, realism, aesthetics.",
                    Rubric(("alignment", "realism", "aesthetics"), 0, 10),
                ),
            ),
            typical=(0.0, 10.0),
        ),
        Preset(
            "rating",
            "1",
            (
                Question(
                    'How well does this {medium} show "{prompt}", and how well is it made? Think it over in a few '
                    'sentences, then end with one line "Rating: X", X from 0 to 10.',
                    Lines(("rating",), ("Rating:",), 0, 10),
                ),
            ),
            typical=(0.0, 10.0),
        ),
        Preset(
            "unifiedreward",
            "1",
            (
                Question(
                    _unified_wording("- Coherence Score: is it free of glitches, distortions and contradictions?")
                    % _answer_lines("Alignment", "Coherence", "Style"),
                    _axis_lines("Alignment", "Coherence", "Style"),
                ),
            ),
            IMAGE,
            typical=(1.0, 5.0),
            paper="arXiv:2503.05236",
            weights="CodeGoat24/UnifiedReward-2.0-qwen-7b",
            licence="MIT",
        ),
        Preset(
            "unifiedreward_video",
            "1",
            (
                Question(
                    _unified_wording("- Physics Score: do weight, motion, collisions and contacts make physical sense?")
                    % _answer_lines("Alignment", "Physics", "Style"),
                    _axis_lines("Alignment", "Physics", "Style"),
                ),
            ),
            VIDEO,
            typical=(1.0, 5.0),
            paper="arXiv:2503.05236",
            weights="CodeGoat24/UnifiedReward-2.0-qwen-7b",
            licence="MIT",
        ),
        Preset(
            "q_insight",
            "1",
            (
                Question(
                    "Rate the quality of this picture as a picture, with a number from 1 (very poor) to 5 "
                    "(excellent), to two decimals. Reason inside <think> </think>, then answer inside <answer> "
                    '</answer> with a JSON object with the key "rating".',
                    Rubric(("rating",), 1, 5),
                ),
            ),
            IMAGE,
            typical=(1.0, 5.0),
            paper="arXiv:2503.22679",
            weights="ByteDance/Q-Insight",
            licence="Apache-2.0",
        ),
        Preset(
            "ixc_reward",
            "1",
            (Question("Make a {medium} of: {prompt}", Lines(("reward",), (r"\A",)), reply="Here is the {medium}."),),
            paper="arXiv:2501.12368",
            weights="internlm/internlm-xcomposer2d5-7b-reward",
            licence="InternLM's own (research free, commercial on request)",
        ),
        Preset(  # VQ and MQ don't see the prompt, as in the paper: only TA may depend on it
            "video_dimensions",
            "1",
            (
                Question(
                    _ask_rating(
                        "These are frames of a video, in order. How good is it as pictures: clear, stable in detail, "
                        "well composed, free of artefacts?",
                        "VQ",
                    ),
                    Rubric(("VQ",), 1, 10),
                ),
                Question(
                    _ask_rating(
                        "These are frames of a video, in order. How good is its motion: does something move, smoothly, "
                        "and as bodies do, without jumps or melting shapes?",
                        "MQ",
                    ),
                    Rubric(("MQ",), 1, 10),
                ),
                Question(
                    _ask_rating(
                        "These are frames of a video, in order. How well do its subjects, actions, places and camera "
                        "fit this text: {prompt}",
                        "TA",
                    ),
                    Rubric(("TA",), 1, 10),
                ),
            ),
            VIDEO,
            typical=(1.0, 10.0),
            paper="arXiv:2501.13918",
        ),
        Preset(
            "pairs",
            "1",
            (
                Question(
                    f'Two {{medium}}s were made for "{{prompt}}"{_HALVES}. Which is better, first by what was asked '
                    f"for, then by how it looks? {SAY_WINNER}",
                    WINNER,
                    ("first", "second"),
                ),
            ),
            typical=(0.0, 1.0),
            paper="arXiv:2508.20751",
        ),
        Preset(
            "unifiedreward_think",
            "1",
            (
                Question(
                    f"Two {{medium}}s were made from the caption: {{prompt}}{_HALVES}. Compare them by semantic "
                    "consistency, aesthetics and authenticity, with up to two more dimensions where they matter: score "
                    "each {medium} from 1 to 10 on each and add the scores up. Reason inside <think> </think>. Then "
                    "answer inside <answer> </answer> with one of: {Medium} 1 is better / {Medium} 2 is better",
                    _BETTER,
                    ("first", "second"),
                ),
            ),
            typical=(0.0, 1.0),
            paper="arXiv:2505.03318",
            weights="CodeGoat24/UnifiedReward-Think-qwen-7b",
            licence="MIT",
        ),
        Preset(
            "regions",
            "1",
            (
                Question(
                    _ask_rating(
                        'As a whole, how well is this image laid out for "{prompt}": the right things, each where it '
                        "belongs?",
                        "global",
                        0,
                    ),
                    Rubric(("global",), 0, 10),
                ),
                Question(
                    _ask_rating(
                        'The second image is a part cut out of the first, which was asked for with "{prompt}". How '
                        "well made is what this part shows, and how well does it fit what was asked for?",
                        "local",
                        0,
                    ),
                    Rubric(("local",), 0, 10),
                    ("media", "region"),
                ),
            ),
            IMAGE,
            typical=(0.0, 10.0),
            paper="arXiv:2510.12784",
        ),
    )
}
