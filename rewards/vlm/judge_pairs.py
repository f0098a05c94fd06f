"""Judges that say which of two samples is better: among the samples of a prompt, or of two contestants."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import fmean

from torch import Tensor

from rewards.vlm.judge import Judge, JudgedBatch
from rewards.vlm.judge_client import JudgeError
from rewards.vlm.judge_presets import PRESETS
from workbench.core.types import Media


@dataclass(frozen=True)
class JudgePairs(Judge):
    """A judge's win rates among the samples of one prompt (Pref-GRPO), every pair asked in both orders.

    Samples of one prompt in one call (and, for edits, of one source) meet each other: K of them make K(K-1) questions.
    A win is 1, a tie 1/2; a pair counts by the mean of its two orders, so a judge that likes the first place gives 1/2
    to all. Where one order has no usable answer the pair is left out, for its bias would not cancel; a sample without
    a pair left, or alone with its prompt, is NaN. `last_dimensions["first_place"]` is how often the first place won in
    a sample's pairs: 1/2 for a judge without a bias.
    """

    preset: str = "pairs"

    spec = PRESETS["pairs"].spec("judge_pairs")
    kind = "pairs"

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scene = self._encode_batch(media, prompts, references)
        groups: dict[Hashable, list[int]] = {}
        for b in scene.good:
            groups.setdefault((scene.prompts[b], *scene.sources.get(b, [])), []).append(b)
        first = self._compare(scene, [pair for members in groups.values() for pair in permutations(members, 2)], media)
        scores, parts = self._empty_scores(len(media), ["first_place"])
        for members in groups.values():
            for b in members:
                met = [o for o in members if o != b and (b, o) in first and (o, b) in first]
                if met:
                    scores[b] = fmean((first[b, o] + 1 - first[o, b]) / 2 for o in met)
                    parts["first_place"][b] = fmean((first[b, o] + first[o, b]) / 2 for o in met)
                    self.last_failures.pop(b, None)
                else:
                    self.last_failures.setdefault(
                        b, "nothing to compare with: the only judged sample of its prompt here"
                    )
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)

    def score_against(
        self, *, media: Media, rivals: Media, prompts: Sequence[str], references: Media | None = None
    ) -> Tensor:
        """[B]: how far each sample beats its own rival, by the mean of both orders; 1/2 a tie, NaN where one order has
        no usable answer. So contestants of a run are compared with one of them, prompt by prompt and noise by noise."""
        n, rival_scene = len(media), self._encode_batch(rivals, prompts, references)
        failures = {b: f"its rival: {why}" for b, why in self.last_failures.items()}
        scene = self._encode_batch(media, prompts, references)
        self.last_failures.update(failures | self.last_failures)
        met = [b for b in scene.good if b in rival_scene.pictures]
        pictures = scene.pictures | {n + b: uris for b, uris in rival_scene.pictures.items()}
        sources = scene.sources | {n + b: uris for b, uris in rival_scene.sources.items()}
        scene = replace(scene, pictures=pictures, sources=sources, prompts=[*scene.prompts, *scene.prompts])
        first = self._compare(scene, [pair for b in met for pair in ((b, n + b), (n + b, b))], media)
        scores, parts = self._empty_scores(n, ["first_place"])
        for b in met:
            if (b, n + b) in first and (n + b, b) in first:
                scores[b] = (first[b, n + b] + 1 - first[n + b, b]) / 2
                parts["first_place"][b] = (first[b, n + b] + first[n + b, b]) / 2
        for b in [b for b in self.last_failures if b >= n]:
            del self.last_failures[b]  # of a rival's number
        self.last_dimensions.update(parts)
        return scores.to(media.data.device)

    def _compare(
        self, scene: JudgedBatch, ordered: Sequence[tuple[int, int]], media: Media
    ) -> dict[tuple[int, int], float]:
        """(i, j) -> how far i beat j when i was shown first; without the pairs that have no usable answer, whose
        reasons are in `last_failures`."""
        jobs = {
            (i, j, k): self._make_job(
                0, k, scene.prompts[i], media.modality, scene.sources.get(i, []), scene.pictures[i], scene.pictures[j]
            )
            for i, j in ordered
            for k in range(self.passes)
        }
        answers = self._ask_jobs(jobs)
        first: dict[tuple[int, int], float] = {}
        for i, j in ordered:
            replies = [answers[i, j, k] for k in range(self.passes)]
            if read := [a[0] for a in replies if not isinstance(a, JudgeError)]:
                first[i, j] = fmean(read)
            else:
                self.last_failures.setdefault(i, str(replies[0]))
                self.last_failures.setdefault(j, str(replies[0]))
        return first
