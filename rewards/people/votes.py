"""Pairwise votes, and what they can prove: read, turned into features, held out, counted.

A file of votes has one JSON object a line:
    {"prompt": "a red circle", "a_path": "1.png", "b_path": "2.png", "winner": "a", "voter": "ada"}
winner is a, b or tie; voter may be left out; paths are relative to the file. What both were made from may be named too
(`source`, `mask`, ...): one instruction for two pictures is two prompts. Instead of a path a side may give
`a_features` / `b_features`, its place in the space of the encoder that is named in fitting.

Votes may be on pictures, on clips or on sounds; a file holds one kind. What is seen of a medium: taste_features.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.people.taste_features import SPEC, STARTER_ENCODERS, TasteEncoder
from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES
from workbench.core.io.parsing import read_json_lines
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.types import derive_seed

FOLDS = 5
HALF, EASY = 0.5, 0.6  # chance; an accuracy that a modest taste reaches, for saying how many votes would show it
# In cross-validation a vote helps to judge the votes that help to judge it: each likeness between two votes counts
# twice. Where there is no taste the variance of the accuracy is then up to twice a coin's: measured at 1.7 to 1.9 over
# 150 fits each of 150 and of 40 random votes on 8 features, of which 5 to 6 % would have been called better than chance
# instead of 2.5 %; counted half, 1 % are.
REUSE = 2.0
KEYS = ("prompt", "a_path", "b_path", "a_features", "b_features", "winner", "voter", *NAMES)
TARGET = {"a": 1.0, "b": 0.0, "tie": 0.5}
KINDS = {"image": "picture", "video": "clip", "audio": "sound"}


@dataclass(frozen=True, eq=False)
class Votes:
    """N pairs as features of their media, and who won."""

    a: Tensor  # float64 [N,D], norm 1, without the cosine of medium and prompt that may come last
    b: Tensor  # float64 [N,D]
    target: Tensor  # float64 [N]: 1 when a won, 0 when b did, 1/2 for a tie
    prompts: tuple[str, ...]  # N
    voters: tuple[str, ...]  # N, "" for nobody in particular
    media: tuple[tuple[str, str], ...]  # N, what tells the two media from others: path or digest
    dropped: int = 0  # votes left out because a side's features are not numbers
    encoder: TasteEncoder = TasteEncoder("image", STARTER_ENCODERS["image"])  # whose features a and b are

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: Tensor) -> Votes:
        """The votes at bool [N] or index [M] `rows`."""
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        picked = [tuple(part[i] for i in index.tolist()) for part in (self.prompts, self.voters, self.media)]
        return Votes(self.a[index], self.b[index], self.target[index], *picked, encoder=self.encoder)

    @property
    def decided(self) -> Tensor:
        """bool [N]: no tie."""
        return self.target != 0.5


def read_votes(path: str | Path, model: str = "", device: torch.device | str = "cpu") -> Votes:
    """The votes of a JSONL file, its media seen through the encoder `model`, each once with each prompt; "": the
    starter pack's for their kind.

    A vote with features that are not all numbers is left out and counted. Raises BadInput, naming file and line, also
    for media of two kinds.
    """
    file = Path(path).expanduser()
    lines = list(read_rows(file))
    if not lines:
        raise BadInput(f"{file}: no votes in it")
    encoder = _choose_encoder(file, lines, model, device)
    features: dict[str, Tensor] = {}
    for where, row in lines:
        for side in "ab":
            key = _feature_key(row, side)
            if key not in features:
                features[key] = _side_features(row, side, file.parent, encoder, device, where)
    widths = {len(v) for v in features.values()}
    if len(widths) > 1:
        raise BadInput(f"{file}: features of different lengths, {sorted(widths)}; all must come from the same encoder")
    a, b = (torch.stack([features[_feature_key(row, side)] for _, row in lines]) for side in "ab")
    votes = Votes(
        a,
        b,
        torch.tensor([TARGET[row["winner"]] for _, row in lines], dtype=torch.float64),
        tuple(_prompt_key(row) for _, row in lines),
        tuple(row.get("voter", "") for _, row in lines),
        tuple((_media_key(row, "a"), _media_key(row, "b")) for _, row in lines),
        encoder=encoder,
    )
    is_finite = votes.a.isfinite().all(1) & votes.b.isfinite().all(1)
    return replace(votes[is_finite], dropped=int((~is_finite).sum()))


def _choose_encoder(file: Path, lines: list[tuple[str, dict]], model: str, device: torch.device | str) -> TasteEncoder:
    """The encoder for what was voted on. It reads the prompts too where it can and there are any, unless a vote gives
    features in place of media. Raises BadInput for media of two kinds."""
    paths = [(where, row[f"{side}_path"]) for where, row in lines for side in "ab" if f"{side}_path" in row]
    modality = ""
    for where, name in {name: (where, name) for where, name in paths}.values():
        kind = _read_modality(file.parent / name, where)
        if modality and kind != modality:
            raise BadInput(
                f"{where}: {name} is a {KINDS[kind]} where other votes are on a {KINDS[modality]}; a taste is learned "
                "from one kind: write a file for each"
            )
        modality = kind
    modality = modality or "image"
    encoder = TasteEncoder(modality, model or STARTER_ENCODERS[modality])
    encoder.check()
    is_read = len(paths) == 2 * len(lines) and all(row["prompt"].strip() for _, row in lines)
    return replace(encoder, reads_prompts=is_read and encoder.can_read(device))


def _read_modality(path: Path, where: str) -> str:
    from workbench.core.io import media  # and Pillow with it: not where rewards are listed
    from workbench.core.io.budget import Budget

    try:
        return media.measure_media(path, Budget())
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def read_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """(file and line, vote) of each line. Raises BadInput, naming file and line."""
    for number, row in read_json_lines(file, allow_nan=True):
        where = f"{file}, line {number}"
        if not isinstance(row, dict):
            raise BadInput(f"{where}: not a JSON object; a file of votes has one a line")
        if unknown := set(row) - set(KEYS):
            word = sorted(unknown)[0]
            raise BadInput(f"{where}: unknown key {word!r}; {suggest_nearest(word, KEYS)}")
        for key in ("prompt", "voter", *NAMES):
            if not isinstance(row.get(key, ""), str) or (key == "prompt" and key not in row):
                raise BadInput(f"{where}: `{key}` must be a text")
        if row.get("winner") not in tuple(TARGET):
            raise BadInput(f"{where}: `winner` must be a, b or tie, got {quote_value(row.get('winner'))}")
        for side in "ab":
            if (f"{side}_path" in row) == (f"{side}_features" in row):
                raise BadInput(f"{where}: give either `{side}_path` or `{side}_features`")
            if not isinstance(row.get(f"{side}_path", ""), str):
                raise BadInput(f"{where}: `{side}_path` must be a text, got {quote_value(row[f'{side}_path'])}")
        yield where, row


def _prompt_key(row: dict) -> str:
    """The prompt with what it came with, by which votes are kept apart."""
    return "\0".join([row["prompt"], *(f"{name}={row[name]}" for name in NAMES if row.get(name))])


def _media_key(row: dict, side: str) -> str:
    return row[f"{side}_path"] if f"{side}_path" in row else json.dumps(row[f"{side}_features"])


def _feature_key(row: dict, side: str) -> str:
    return f"{_media_key(row, side)}\0{row['prompt']}"


def _side_features(
    row: dict, side: str, folder: Path, encoder: TasteEncoder, device: torch.device | str, where: str
) -> Tensor:
    """float64 [D]."""
    if f"{side}_features" in row:
        try:
            values = torch.tensor(row[f"{side}_features"], dtype=torch.float64)
        except (TypeError, ValueError):
            values = torch.empty(0)
        if values.dim() != 1 or not len(values):
            raise BadInput(f"{where}: `{side}_features` must be a list of numbers")
        return F.normalize(values, dim=0)
    from workbench.core.io import media

    try:
        medium = media.read_media(folder / row[f"{side}_path"])
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    with torch.no_grad():
        medium = replace(medium, data=medium.data.to(device))
        return encoder.embed(SPEC, medium, [row["prompt"]])[0].double().cpu()


def vote_clusters(votes: Votes) -> tuple[Tensor, str]:
    """int64 [N], and what it goes by: votes with one number may not lie on both sides of a held-out split.

    By prompt, if there are enough prompts to hold out; else by media: votes that share one stay together.
    """
    index = {p: n for n, p in enumerate(dict.fromkeys(votes.prompts))}
    if len(index) >= FOLDS:
        return torch.tensor([index[p] for p in votes.prompts]), "prompts"
    parent: dict[str, str] = {}

    def find_root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for a, b in votes.media:
        parent[find_root(a)] = find_root(b)
    roots = [find_root(a) for a, _ in votes.media]
    number = {r: n for n, r in enumerate(dict.fromkeys(roots))}
    return torch.tensor([number[r] for r in roots]), "media"


def assign_folds(cluster: Tensor) -> Tensor:
    """int64 [N] in 0..FOLDS-1: whole clusters, dealt out in an order that depends on nothing but their number."""
    order = sorted(set(cluster.tolist()), key=lambda c: derive_seed(0, "fold", c))
    dealt = {c: n % FOLDS for n, c in enumerate(order)}
    return torch.tensor([dealt[c] for c in cluster.tolist()])


def cross_validate(votes: Votes, fit: Callable[[Votes], Callable[[Votes], Tensor]]) -> HeldOutReport:
    """How often a scorer fitted on four fifths of the votes names the winner of the others, each fifth in turn.

    fit: votes -> (votes -> [N] score of a minus score of b). Whatever it chooses, it must choose from the votes that it
    is given. Raises BadInput when there are too few votes to hold any out.
    """
    cluster, by = vote_clusters(votes)
    count = len(set(cluster.tolist()))
    if count < FOLDS or int(votes.decided.sum()) < 2 * FOLDS:
        raise BadInput(
            f"not enough votes yet: {int(votes.decided.sum())} without a tie on {count} {by}; at least {2 * FOLDS} on "
            f"{FOLDS} are needed to hold any out, and about {math.ceil(REUSE * votes_to_show(EASY))} to show a taste"
        )
    fold, correct = assign_folds(cluster), torch.empty(len(votes), dtype=torch.float64)
    for f in range(FOLDS):
        margin = fit(votes[fold != f])(votes[fold == f])
        correct[fold == f] = torch.where(margin == 0, 0.5, ((margin > 0) == (votes.target[fold == f] > 0.5)).double())
    decided = votes.decided
    return make_report(correct[decided], cluster[decided], by, int((~decided).sum()), votes.dropped, reuse=REUSE)


@dataclass(frozen=True)
class HeldOutReport:
    """What held-out votes say of a scorer."""

    votes: int  # without ties
    ties: int
    dropped: int  # could not be used
    clusters: int
    by: str  # what was held out whole: prompts or media
    accuracy: float
    low: float  # 95 % interval
    high: float
    design: float  # how many votes of one cluster are worth one independent vote

    @property
    def is_better(self) -> bool:
        """Than chance, for sure: the whole interval lies above 1/2."""
        return self.low > HALF

    @property
    def votes_needed(self) -> int:
        """Roughly how many more votes would show it, at this accuracy, or at that of a modest taste where this one is
        chance or below; 0 when it is shown, or when votes are not what is lacking."""
        likely = self.accuracy if self.accuracy > HALF else EASY
        return 0 if self.is_better else max(0, math.ceil(votes_to_show(likely) * self.design) - self.votes)

    def __str__(self) -> str:
        on = f"{self.votes} held-out votes, {self.clusters} {self.by}"
        where = f"right on {self.accuracy:.0%} [{self.low:.0%}, {self.high:.0%}] of {on}"
        if self.is_better:
            return f"better than chance: {where}"
        if self.accuracy > HALF:
            more = max(self.votes_needed, 1)
            return f"not enough votes yet: {where}; at this accuracy about {more} more would tell it from chance"
        if self.votes_needed:
            more = self.votes_needed
            return (
                f"not enough votes yet: {where}; a taste that is right on {EASY:.0%} would show with about {more} more"
            )
        return f"not better than chance: {where}; a taste that this encoder sees would have shown by now"


def make_report(
    correct: Tensor, cluster: Tensor, by: str, ties: int = 0, dropped: int = 0, reuse: float = 1.0
) -> HeldOutReport:
    """right: [N] 1, 0, or 1/2 where the scorer saw no difference; cluster: [N]; reuse: see REUSE, 1 for votes that
    nothing was fitted to.

    The interval is Clopper and Pearson's (doi:10.1093/biomet/26.4.404), exact at any number of votes, for as many votes
    as would be independent: N over the design effect, the variance between clusters over that of independent votes, at
    least 1, times `reuse`. Where all votes are right or all wrong, or there are too few clusters to vary, no variance
    shows, and each cluster counts as one vote.
    """
    n, p = len(correct), correct.mean().item()
    index = torch.unique(cluster, return_inverse=True)[1]
    count = int(index.max()) + 1
    if 0 < p < 1 and count >= FOLDS:
        excess = torch.zeros(count, dtype=torch.float64).index_add_(0, index, correct - p)
        between = excess.square().sum().item() / n**2 * count / max(count - 1, 1)
        design = max(1.0, between / (p * (1 - p) / n)) * reuse
    else:
        design = n / count * reuse
    low, high = clopper_pearson(p, n / design)
    return HeldOutReport(n, ties, dropped, count, by, p, low, high, design)


def clopper_pearson(accuracy: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share of n independent votes."""
    from scipy.special import betaincinv

    k = accuracy * n
    low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    return low, float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0


def votes_to_show(accuracy: float) -> int:
    """Independent votes, to 2 %, whose interval lies above chance at this accuracy, which must be above chance."""
    n = 1
    while clopper_pearson(accuracy, n)[0] <= HALF:
        n += 1 + n // 50
    return n


def distinct_voters(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct ones, sorted."""
    return tuple(sorted(set(names)))
