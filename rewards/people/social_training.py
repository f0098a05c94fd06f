"""Training on a community's pairs: the upper blocks of a CLIP (arXiv:2402.09872), or a head on given embeddings."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.encoders import checkpoints, image_text
from rewards.people.social import Pair, SocialHead, check_files, read_embeddings
from workbench.core.errors import BadInput
from workbench.core.io import image
from workbench.core.io.parsing import read_json
from workbench.core.paths import write_atomic
from workbench.core.types import Count, Natural, NonNegative, derive_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

# --- losses on scores ------------------------------------------------------------------------------------------------


def triplet_loss(pos: Tensor, neg: Tensor, margin: float, scale: float) -> Tensor:
    """[]: the paper's mean relu(|a - p|^2 - |a - n|^2 + margin) for unit vectors with cosines pos, neg [B] to a."""
    return F.relu(2 * (neg - pos) + margin).mean()


def bradley_terry_loss(pos: Tensor, neg: Tensor, margin: float, scale: float) -> Tensor:
    """[]: -log sigmoid(scale * (pos - neg)), the likelihood that pos is preferred (Bradley & Terry 1952)."""
    return -F.logsigmoid(scale * (pos - neg)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"triplet": triplet_loss, "bradley_terry": bradley_terry_loss}


# --- what is trained: both give the scores of a batch of pairs -------------------------------------------------------


class TunedCLIP(nn.Module):
    """A CLIP of which only the last `vision` and `text` blocks, the norms after them and the projections learn.

    The paper: 3 of 24 and 2 of 12 blocks, and no visual projection; its code leaves the frozen rest in the graph.
    """

    def __init__(self, model: str, vision: int, text: int, projections: bool):
        super().__init__()
        self.encoder = image_text.load_transformers(model)  # its own copy: a loaded reward's weights never move
        net = self.net = checkpoints.freeze_module(self.encoder.net)
        if type(net).__name__ != "CLIPModel":
            raise BadInput(f"model: {model} is a {type(net).__name__}; training needs a transformers CLIP")
        self.scale = self.encoder.scale
        parts = [
            *_last_blocks(net.vision_model.encoder.layers, vision, "vision"),
            *_last_blocks(net.text_model.encoder.layers, text, "text"),
        ]
        parts += ([net.vision_model.post_layernorm] if vision else []) + (
            [net.text_model.final_layer_norm] if text else []
        )
        parts += [net.visual_projection, net.text_projection] if projections else []
        for part in parts:
            part.requires_grad_(True)

        self.tokens = functools.lru_cache(4096)(lambda prompt: self.encoder.tokens([prompt]))

    def read(self, pair: Pair) -> tuple:
        pos, neg = (self.encoder.view(image.read_image(p)[None])[0] for p in (pair.pos_path, pair.neg_path))
        return pos, neg, self.tokens(pair.prompt)

    def forward(self, pos: Tensor, neg: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        text = F.normalize(self.encoder.text(**{k: v.flatten(0, 1) for k, v in tokens.items()}), dim=-1)  # [B,D]
        pos, neg = F.normalize(self.encoder.image(torch.cat([pos, neg])), dim=-1).chunk(2)
        return (pos * text).sum(1), (neg * text).sum(1)

    def save(self, folder: Path, model: str) -> None:
        """A transformers CLIP folder; config.json, by which a folder counts as a model, comes last."""
        import transformers

        part = folder / ".part"
        self.net.save_pretrained(part)
        source = image_text.resolve_model(model)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(part)
        settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
        (part / "preprocessor_config.json").write_text(json.dumps(settings))
        for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):
            file.replace(folder / file.name)
        part.rmdir()


def _last_blocks(layers: nn.ModuleList, k: int, tower: str) -> list[nn.Module]:
    if k > len(layers):
        raise BadInput(f"{tower}: the {tower} tower has {len(layers)} blocks, {k} can't be tuned")
    return [*layers][len(layers) - k :]


class EmbeddingScorer(nn.Module):
    """A Head on embeddings that are given, prompts' too where the file has them under the prompt's text."""

    scale = 20.0  # logits a unit of cosine, for Bradley-Terry

    def __init__(self, embeddings: Mapping[str, Tensor], pairs: Sequence[Pair]):
        super().__init__()
        self.embeddings = embeddings
        prompted = all(p.prompt in embeddings for p in pairs)
        self.head = SocialHead(next(iter(embeddings.values())).shape[0], prompted)

    def read(self, pair: Pair) -> tuple:
        pos, neg = (self.embeddings[k] for k in (pair.pos_item, pair.neg_item))
        return pos, neg, self.embeddings[pair.prompt] if self.head.prompted else torch.zeros(0)

    def forward(self, pos: Tensor, neg: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(pos, texts), self.head(neg, texts)

    def save(self, folder: Path, model: str) -> None:
        state = {k: v.contiguous() for k, v in self.head.state_dict().items()}
        write_atomic(folder / "head.safetensors", safetensors.torch.save(state))


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SocialTraining:
    """How the reward is trained; the defaults are the paper's where its code states them."""

    model: str = (
        "openai/clip-vit-large-patch14"  # a transformers CLIP to start from: hub id, folder, starter:image/clip
    )
    embeddings: str = (
        ""  # instead of a CLIP: a .npz or .safetensors of vectors keyed by item, on which a head is trained
    )
    loss: Literal["triplet", "bradley_terry"] = "triplet"
    margin: NonNegative = 0.3  # of the triplet loss, on squared distances
    vision: Natural = 3  # last blocks of the picture tower that learn
    text: Natural = 2  # last blocks of the text tower that learn
    projections: bool = True  # whether the projections into the common space learn
    lr: NonNegative = 3e-5
    weight_decay: NonNegative = 0.01
    batch: Count = 32
    epochs: Count = 10
    every: Count = 800  # steps between checkpoints
    workers: Natural = 0  # processes that read pictures ahead
    seed: Natural = 0

    def load_scorer(self, pairs: Sequence[Pair]) -> TunedCLIP | EmbeddingScorer:
        """What will learn, loaded. Raises BadInput."""
        if not self.embeddings:
            return TunedCLIP(self.model, self.vision, self.text, self.projections)
        torch.manual_seed(derive_seed(self.seed, "head"))
        return EmbeddingScorer(read_embeddings(self.embeddings), pairs)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raises BadInput for what is wrong without loading weights."""
        if self.embeddings:
            embeddings = read_embeddings(self.embeddings)
            for item in (i for p in pairs for i in (p.pos_item, p.neg_item)):
                if item not in embeddings:
                    raise BadInput(f"{self.embeddings}: no embedding has the key {item!r}, which a pair names")
            return
        if self.model.startswith("open_clip:"):
            raise BadInput(f"model: {self.model} is open_clip's; training needs a transformers CLIP (hub id or folder)")
        image_text.check_encoder(self.model)
        check_files(pairs)


def epoch_batches(n: int, s: SocialTraining, epoch: int) -> list[list[int]]:
    """The batches of an epoch: whole ones of a seeded shuffle, or the one there is."""
    generator = torch.Generator().manual_seed(derive_seed(s.seed, "epoch", epoch))
    shuffled = torch.randperm(n, generator=generator).tolist()
    size = min(s.batch, n)
    return [shuffled[k : k + size] for k in range(0, n - size + 1, size)]


class PairDataset(torch.utils.data.Dataset):
    """Pairs as a scorer reads them."""

    def __init__(self, scorer: TunedCLIP | EmbeddingScorer, pairs: Sequence[Pair]):
        self.scorer, self.pairs = scorer, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, n: int) -> tuple:
        return self.scorer.read(self.pairs[n])

    def make_loader(self, rows: Sequence[Sequence[int]], workers: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self, batch_sampler=rows, num_workers=workers)


@torch.no_grad()
def pairwise_accuracy(scorer: nn.Module, reader: PairDataset, accelerator: Accelerator, s: SocialTraining) -> float:
    """Share of pairs in which pos scores higher; a tie is a half."""
    correct = 0.0
    rows = [[*range(k, min(k + s.batch, len(reader)))] for k in range(0, len(reader), s.batch)]
    for batch in reader.make_loader(rows, s.workers):
        pos, neg = scorer(*_send_to_device(batch, accelerator.device))
        correct += ((pos > neg).float() + 0.5 * (pos == neg).float()).sum().item()
    return correct / len(reader)


def _send_to_device(batch: Any, device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, device)


class TrainingState:
    """A training on its way, in the form in which a checkpoint keeps it."""

    def __init__(self, scorer: TunedCLIP | EmbeddingScorer, s: SocialTraining, accelerator: Accelerator):
        self.scorer, self.accelerator = scorer, accelerator
        self.learned = {n: p for n, p in scorer.named_parameters() if p.requires_grad}
        if not self.learned:
            raise BadInput("nothing learns: give vision, text or projections")
        optimizer = torch.optim.AdamW(self.learned.values(), lr=s.lr, weight_decay=s.weight_decay)
        self.live, self.optimizer = accelerator.prepare(scorer, optimizer)
        self.step, self.total, self.history, self.best = 0, 0.0, [], {}

    def state(self) -> dict[str, Any]:
        progress = {"step": self.step, "total": self.total, "history": json.dumps(self.history), "best": self.best}
        return progress | {"learned": self.current_weights(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state["learned"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.total, self.best = state["step"], state["total"], state["best"]
        self.history = json.loads(state["history"])

    def current_weights(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.learned.items()}

    def train_step(self, batch: Any, s: SocialTraining) -> None:
        pos, neg = self.live(*_send_to_device(batch, self.accelerator.device))
        loss = LOSSES[s.loss](pos, neg, s.margin, self.scorer.scale)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.learned.values(), 1.0)
        self.optimizer.step()
        self.step, self.total = self.step + 1, self.total + loss.item()

    def finish_epoch(self, length: int, val_accuracy: float | None) -> None:
        """The end of an epoch of `length` steps, after which `val_accuracy` of the validation pairs come out right."""
        if val_accuracy is not None and all(val_accuracy > entry["val"] for entry in self.history):
            self.best = self.current_weights()
        loss, self.total = self.total / length, 0.0
        self.history.append({"epoch": self.step // length, "step": self.step, "loss": loss, "val": val_accuracy})


def train_social(
    pairs: Sequence[Pair], out: Path, s: SocialTraining = SocialTraining(), val: Sequence[Pair] = ()
) -> Iterator[dict]:
    """Train, and leave in `out` a transformers CLIP folder (or head.safetensors) with social.json, what was done.

    Yields {epoch, step, steps, loss, val} after each epoch, `val` the pairwise accuracy on the pairs `val`; with these,
    the best epoch's weights are kept, without (None) the last one's. Killed and started again with the same arguments
    it goes on from its last checkpoint and ends with the same weights. Raises BadInput before weights load, also for a
    folder that holds other work.
    """
    from accelerate import Accelerator

    s.check([*pairs, *val])
    story = _fingerprint(pairs, val, s)
    state, finished = _read_progress(out, story)
    if finished:
        return
    accelerator = Accelerator()
    scorer = s.load_scorer([*pairs, *val])
    progress = TrainingState(scorer, s, accelerator)
    if state:
        progress.load(state)
    out.mkdir(parents=True, exist_ok=True)
    reader, length = PairDataset(scorer, pairs), len(epoch_batches(len(pairs), s, 0))
    share = slice(accelerator.process_index, None, accelerator.num_processes)  # of every batch, for this process
    while progress.step < s.epochs * length:
        epoch, first_batch = divmod(progress.step, length)
        for batch in reader.make_loader(
            [row[share] for row in epoch_batches(len(pairs), s, epoch)[first_batch:]], s.workers
        ):
            progress.train_step(batch, s)
            if progress.step % length == 0:
                progress.finish_epoch(
                    length, pairwise_accuracy(scorer, PairDataset(scorer, val), accelerator, s) if val else None
                )
            if progress.step % length == 0 or progress.step % s.every == 0:
                _save_checkpoint(out / "checkpoint.pt", progress.state() | {"story": story}, accelerator)
        yield progress.history[-1] | {"steps": s.epochs * length}
    scorer.load_state_dict(progress.best, strict=False)
    if accelerator.is_main_process:
        scorer.save(out, s.model)
        record = {"story": story, "settings": asdict(s), "pairs": len(pairs), "val pairs": len(val)}
        write_atomic(out / "social.json", json.dumps(record | {"history": progress.history}, indent=1))
        (out / "checkpoint.pt").unlink()
    accelerator.wait_for_everyone()


def _fingerprint(pairs: Sequence[Pair], val: Sequence[Pair], s: SocialTraining) -> str:
    """What decides the result, in one fingerprint: where files lie, or how often they are kept, does not."""
    settings = {k: v for k, v in asdict(s).items() if k not in ("every", "workers")}
    rows = [(p.prompt, p.pos_item, p.neg_item) for part in (pairs, val) for p in part]
    return hashlib.sha256(json.dumps([settings, len(pairs), rows], sort_keys=True).encode()).hexdigest()


def _read_progress(out: Path, story: str) -> tuple[dict | None, bool]:
    """The checkpoint in `out`, if there is one, and whether all is done there. Raises BadInput for other work's."""
    record_path, checkpoint_path = out / "social.json", out / "checkpoint.pt"
    if record_path.is_file():
        fingerprint, state = read_record(record_path), None
    elif checkpoint_path.is_file():
        state = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        fingerprint = state["story"]
    else:
        return None, False
    if fingerprint != story:
        raise BadInput(f"{out} holds a training with other settings or pairs; give another folder")
    return state, record_path.is_file()


def read_record(path: Path) -> str:
    """The fingerprint of the training that a finished one's record tells of. Raises BadInput."""
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("story"), str):
        raise BadInput(f"{path}: no record of a training by `workbench social train`; give another folder")
    return record["story"]


def _save_checkpoint(path: Path, state: Mapping[str, Any], accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        out = io.BytesIO()
        torch.save(dict(state), out)
        write_atomic(path, out.getvalue())
