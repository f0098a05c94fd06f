"""Comparisons to start from, one for each kind of media: pipeline, prompts, rewards, who looks on and contestants
belong together. Nothing here imports torch."""

from __future__ import annotations

from workbench.ui.comparison_request import ComparisonRequest

PRESETS: dict[str, ComparisonRequest] = {
    "Pictures": ComparisonRequest(
        (
            "a blue circle above a red triangle",
            "three green circles",
            "a white square and a green triangle",
            "a large purple cross",
        ),
        "starter-image",
        ("sample", "best_of_n n=21", "reno iterations=20 lr=5.0 momentum=0.9"),
        {"starter_clip": 1.0},
        ("oracle", "saturated_pixels"),
    ),
    "Edits": ComparisonRequest(
        "starter-edit-test",
        "starter-edit",
        ("sample", "best_of_n n=8", "reno iterations=7"),
        {"starter_edit_clip": 1.0},
        ("edit_oracle", "edit_done", "edit_kept"),
        limit=6,
    ),
    "Clips": ComparisonRequest(
        "starter-video-test",
        "starter-video-unguided",
        ("sample", "best_of_n n=8", "ditto iterations=5 lr=0.05"),
        {"starter_video_clip": 1.0},
        ("oracle", "dynamic_degree"),
        limit=4,
    ),
    "Music": ComparisonRequest(
        "starter-music-test",
        "starter-music",
        ("sample", "best_of_n n=8", "reno iterations=6 lr=1.0"),
        {"starter_clap": 1.0},
        ("oracle", "loudness", "silence"),
        limit=4,
    ),
}
FIRST = PRESETS["Pictures"]
KINDS = {"image": "Pictures", "edit": "Edits", "video": "Clips", "audio": "Music"}  # of pipelines -> preset
