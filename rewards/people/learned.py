"""A reward learned from your own votes: a Bradley-Terry head on a frozen encoder, of pictures, clips or sounds.

    P(a wins against b) = sigmoid( w . (f(a) - f(b)) )                (Bradley and Terry 1952; a tie is half a win)

f is the medium's place in the encoder's space, and how well it fits its prompt (taste_features.py). w minimises the
mean negative log-likelihood plus l2 |w|^2 / 2, which is convex: one answer, found to float64. How good it is, and
whether it is better than chance at all, is said from votes that it did not see; the control is the same fit to the same
votes dealt out to other pairs. In Python:

    head = fit_taste(read_votes("votes.jsonl", "openai/clip-vit-large-patch14"))
    print(head.report)                 # right on 71% [63%, 78%] of 160 held-out votes, ...
    head.save("my-taste")              # reward: {learned: {path: my-taste}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders import checkpoints
from rewards.people.taste_features import SPEC, STARTER_ENCODERS, TasteEncoder
from rewards.people.votes import HeldOutReport, Votes, assign_folds, cross_validate, vote_clusters
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.core.paths import write_atomic
from workbench.core.types import Media, RewardSpec

L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried in cross-validation; features have norm 1


@dataclass(frozen=True, eq=False)
class TasteHead:
    """A fitted direction and how good it is shown to be."""

    weights: Tensor  # float64 [D]
    model: str  # the encoder whose features it weighs
    l2: float
    report: HeldOutReport
    modality: str = "image"  # of the media that were voted on
    reads_prompts: bool = False  # whether the last weight is of the cosine of medium and prompt
    control: HeldOutReport | None = None  # of a head fitted to these votes, dealt out to other pairs

    def save(self, folder: str | Path) -> None:
        """`head.safetensors` and `head.json`, each whole or not at all."""
        info = {"model": self.model, "modality": self.modality, "reads_prompts": self.reads_prompts, "l2": self.l2}
        control = {"control": asdict(self.control)} if self.control else {}
        write_head(folder, {"weights": self.weights}, info | {"report": asdict(self.report)} | control)


def fit_taste(votes: Votes, model: str = "") -> TasteHead:
    """The head of these votes, its l2 chosen by cross-validation over whole prompts. Deterministic. model: the encoder
    of their features, where it is not the one that they name.

    The reports come from an outer round of folds, in each of which l2 was chosen anew from the other folds alone.
    Raises BadInput when there are too few votes to hold any out.
    """
    report, control = cross_validate(votes, _fit_margins), cross_validate(shuffle_votes(votes), _fit_margins)
    weights, l2 = fit_direction(votes)
    encoder = votes.encoder
    return TasteHead(weights, model or encoder.model, l2, report, encoder.modality, encoder.reads_prompts, control)


def shuffle_votes(votes: Votes, seed: int = 0) -> Votes:
    """The same votes dealt out to other pairs: a control, in which there is nothing to learn."""
    order = torch.randperm(len(votes), generator=torch.Generator().manual_seed(seed))
    return replace(votes, target=votes.target[order])


def _fit_margins(votes: Votes) -> Callable[[Votes], Tensor]:
    weights, _ = fit_direction(votes)
    return lambda others: (others.a - others.b) @ weights


def fit_direction(votes: Votes) -> tuple[Tensor, float]:
    """float64 [D] and the l2 under which votes held out of these are likeliest; ties go to the larger."""
    x, t = votes.a - votes.b, votes.target
    fold = assign_folds(vote_clusters(votes)[0])
    losses = {}
    for l2 in sorted(L2, reverse=True):
        total = 0.0
        for f in fold.unique().tolist():
            w, test = solve_logistic(x[fold != f], t[fold != f], l2), fold == f
            total += bradley_terry_nll(x[test] @ w, t[test]).sum().item()
        losses[l2] = total
    best = min(losses, key=losses.get)
    return solve_logistic(x, t, best), best


def bradley_terry_nll(margin: Tensor, target: Tensor) -> Tensor:
    """[N]: -log likelihood of `target` (1, 0 or 1/2) under Bradley-Terry at the margins score(a) - score(b)."""
    return F.softplus(margin) - target * margin


def solve_logistic(x: Tensor, t: Tensor, l2: float) -> Tensor:
    """float64 [D]: argmin_w mean nll(x w, t) + l2 |w|^2 / 2 for l2 > 0. x: [N,D], t: [N]. Without rows it is 0.

    Newton's method from 0, halving a step that does not descend: a few steps where L-BFGS takes a hundred. Raises
    RuntimeError if it did not converge.
    """
    n, w = len(t), torch.zeros(x.shape[1], dtype=torch.float64)
    if n == 0:
        return w
    if n < len(w):  # the optimum lies in the span of the rows
        span = torch.linalg.qr(x.T).Q  # [D,N]
        return span @ solve_logistic(x @ span, t, l2)
    identity = torch.eye(len(w), dtype=torch.float64)

    def total_loss(w: Tensor) -> Tensor:
        return bradley_terry_nll(x @ w, t).sum() / n + 0.5 * l2 * w.square().sum()

    for _ in range(100):
        s = (x @ w).sigmoid()
        gradient = x.T @ (s - t) / n + l2 * w
        if gradient.abs().max() < 1e-10:
            return w
        step = torch.linalg.solve(x.T @ (x * (s * (1 - s))[:, None]) / n + l2 * identity, gradient)
        current, slope, rate = total_loss(w), gradient @ step, 1.0
        while total_loss(w - rate * step) > current - 1e-4 * rate * slope + 1e-14 and rate > 1e-6:  # 1e-14: rounding
            rate /= 2
        w = w - rate * step
    raise RuntimeError(f"the fit did not converge: a gradient of {gradient.abs().max():.1e} is left")


def minimise_lbfgs(parameters: Sequence[Tensor], closure: Callable[[], Tensor], tolerance: float = 1e-6) -> None:
    """L-BFGS in place; `closure` sets every .grad and returns the loss.
    Raises RuntimeError if a gradient is left over."""
    optimizer = torch.optim.LBFGS(
        list(parameters),
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    closure()
    residual = max((p.grad.abs().max().item() for p in parameters if p.numel()), default=0.0)
    if not residual < tolerance:
        raise RuntimeError(f"the fit did not converge: a gradient of {residual:.1e} is left")


def write_head(folder: str | Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    write_atomic(folder / "head.safetensors", data)
    record = dict(info) | {"sha256": hashlib.sha256(data).hexdigest()}
    write_atomic(folder / "head.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode())


def read_head(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_head` wrote. Raises BadInput for a folder without it, or whose two files do not belong together."""
    folder = Path(folder).expanduser()
    try:
        info = parse_json((folder / "head.json").read_bytes(), str(folder / "head.json"))
        data = (folder / "head.safetensors").read_bytes()
        is_matching = hashlib.sha256(data).hexdigest() == info["sha256"] and isinstance(info["model"], str)
        tensors, info["report"] = safetensors.torch.load(data), HeldOutReport(**info["report"])
        info |= {"control": HeldOutReport(**info["control"])} if "control" in info else {}
    except FileNotFoundError:
        raise BadInput(f"{folder} holds no fitted head (head.json and head.safetensors); fit one from votes") from None
    except (OSError, ValueError, KeyError, TypeError, *checkpoints.UNREADABLE):
        raise BadInput(f"{folder}: its head is damaged; fit it again") from None
    if not is_matching:
        raise BadInput(f"{folder}: head.json and head.safetensors are of different fits; fit it again")
    return tensors, info


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What you like, learned from your own votes on pictures, clips or sounds: a Bradley-Terry head on a frozen
    encoder, in log-odds.

    A head that held-out votes do not show to be better than chance is refused unless `unproven` is set.
    """

    path: str  # the folder that the fit was saved in
    unproven: bool = False  # use it although it is not shown to be better than chance
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the encoder; scores are float32
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only
    weights: Tensor = field(init=False, repr=False, compare=False)  # float32 [D]
    model: str = field(init=False, repr=False, compare=False)  # the encoder whose features they weigh
    encoder: TasteEncoder = field(init=False, repr=False, compare=False)
    report: HeldOutReport = field(init=False, repr=False, compare=False)

    spec: ClassVar[RewardSpec] = replace(
        SPEC, name="learned", version="unfitted", paper="doi:10.1093/biomet/39.3-4.324"
    )

    def __post_init__(self):
        tensors, info = read_head(self.path)
        if "weights" not in tensors:
            raise BadInput(f"{self.path} holds the tastes of several people; name it as `personal`")
        self._set_weights(tensors["weights"], info)

    def _set_weights(self, weights: Tensor, info: Mapping[str, Any], who: str = "") -> None:
        version = hashlib.sha256(f"{info['sha256']} {info['model']} {who}".encode()).hexdigest()[:12]
        modality = str(info.get("modality", "image"))
        if modality not in STARTER_ENCODERS:
            raise BadInput(f"{self.path}: its head is damaged; fit it again")
        encoder = TasteEncoder(modality, info["model"], info.get("reads_prompts") is True)
        needs = frozenset({"prompt"} if encoder.reads_prompts else ())
        spec = replace(self.spec, version=version, modalities=frozenset({modality}), needs=needs)
        values = {"weights": weights.float(), "model": info["model"], "encoder": encoder, "report": info["report"]}
        for name, value in (values | {"spec": spec}).items():
            object.__setattr__(self, name, value)

    def check(self) -> None:
        """Raises BadInput for what can be known to be wrong before anything loads."""
        self.encoder.check()
        if not (self.unproven or self.report.is_better):
            raise BadInput(f"{self.spec.name}: {self.path} is {self.report}; vote more, or set `unproven: true`")

    def load(self, device: torch.device | str = "cpu") -> Any:
        """The encoder, in memory once for each device and dtype. Raises BadInput."""
        loaded = self.encoder.load(device, self.dtype)
        if len(self.weights) != (width := self.encoder.count_features(device, self.dtype)):
            raise BadInput(f"{self.path} weighs {len(self.weights)} features, {self.model} has {width}")
        return loaded

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        self.load(media.data.device)
        features = self.encoder.embed(self.spec, media, prompts, self.dtype, self.checkpoint)
        return features @ self.weights.to(features.device)
