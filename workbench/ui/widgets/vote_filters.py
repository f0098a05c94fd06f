"""Which votes: the filters that the vote tab and the leaderboard share. Nothing here imports torch before it is
asked."""

from __future__ import annotations

from workbench.ui.context import AppContext

ALL_RUNS = ("Everything", 0)
EVERY_STUDY = ("Studies and votes beside them", 0)
MEDIA_KINDS = [("Pictures, clips and sounds", ""), ("Pictures", "image"), ("Clips", "video"), ("Sounds", "audio")]


def list_run_choices(context: AppContext) -> list[tuple[str, int]]:
    """Choices by prompts and date: a run's name may say whose it is."""
    from workbench.feedback import pairing  # and torch with it: not before the page stands

    return [ALL_RUNS] + [
        (
            f"{s.first[:60]}{'…' if len(s.first) > 60 else ''} "
            f"({s.prompts} prompts, {s.created[:16].replace('T', ' ')})",
            s.id,
        )
        for s in pairing.votable_runs(context.runs)
    ]
