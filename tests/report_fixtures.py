"""Summaries as workbench/evaluation/summary.py writes them, for the tests of what is made of them."""

from __future__ import annotations


def make_estimate(mean, half, **more):
    return {"mean": mean, "ci95": [round(mean - half, 4), round(mean + half, 4)], "n": 16, **more}


def make_contestant(name, oracle, clip, nfe, versus=None):
    part = {
        "name": name, "method": "sample" if versus is None else name, "pipeline": "starter-image", "samples": 16,
        "rewards": {"starter_clip": make_estimate(clip, 0.012, optimised=True),
                    "brightness": make_estimate(0.41, 0.02, optimised=False)},
        "oracle": {"overall": make_estimate(oracle, 0.06)}
        | {c: make_estimate(min(0.95, oracle + d), 0.05)
           for c, d in (("color", 0.15), ("size", 0.05), ("count", -0.1), ("position", -0.2))},
        "diversity": 0.21, "nfe": nfe, "reward_calls": nfe if versus else 0, "decodes": nfe, "seconds": nfe / 48,
        "peak_mb": 913.4,
    }  # fmt: skip
    return (
        part
        if versus is None
        else part | {"versus_base": {"oracle": versus, "starter_clip": make_estimate(0.06, 0.01)}}
    )


def summary_of(*contestants, **more):
    return {
        "run": "demo",
        "modality": "image",
        "prompts": 8,
        "seeds": 2,
        "contestants": list(contestants),
        "alarm": None,
    } | more


def usual_summary():
    return summary_of(
        make_contestant("base", 0.52, 0.24, 64),
        make_contestant("best_of_n", 0.57, 0.28, 1600, make_estimate(0.05, 0.07)),
        make_contestant("reno", 0.78, 0.31, 1600, make_estimate(0.26, 0.07)),
        {"name": "draft", "method": "draft", "failed": "OutOfMemoryError: <no> room"},
    )


def make_curve(*points, more=0.06):
    """[(rows per sample, the oracle's mean)] as a contestant's curve; the reward rises with the oracle."""
    return [
        {
            "nfe": n,
            "seconds": n / 48,
            "rewards": {"oracle": make_estimate(mean, more), "starter_clip": make_estimate(mean / 2, 0.01)},
        }
        for n, mean in points
    ]


def make_wins(mean, half):
    return {"oracle": make_estimate(mean, half), "starter_clip": make_estimate(0.9, 0.05)}


def compared_summary():
    """What `workbench compare` leaves: curves, win rates, one that fell short, one of another pipeline, one that
    failed."""
    base = make_contestant("base", 0.52, 0.24, 16) | {"curve": make_curve((1.0, 0.52))}
    best_of_n = make_contestant("best_of_n", 0.57, 0.28, 1024, make_estimate(0.05, 0.07))
    best_of_n |= {
        "curve": make_curve((1.0, 0.52), (2.0, 0.53), (32.0, 0.55), (64.0, 0.57)),
        "wins": make_wins(0.52, 0.05),
    }
    reno = make_contestant("reno", 0.78, 0.31, 1024, make_estimate(0.26, 0.07))
    reno |= {"curve": make_curve((1.0, 0.52), (8.0, 0.66), (64.0, 0.78)), "wins": make_wins(0.71, 0.06)}
    fk = make_contestant("fk", 0.56, 0.27, 512, make_estimate(0.04, 0.07)) | {
        "pipeline": "starter-image-teacher",
        "wins": make_wins(0.5, 0.1),
    }
    failed = {"name": "draft", "method": "draft", "pipeline": "starter-image", "failed": "OutOfMemoryError: <no> room"}
    return summary_of(base, best_of_n, reno, fk, failed)
