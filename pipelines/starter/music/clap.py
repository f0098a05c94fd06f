"""The music pack's reward model: text and audio in one space (CLAP: Elizalde et al., arXiv:2206.04769; Wu et al.,
arXiv:2211.06687), trained with near misses and with corrupted clips.

The audio tower sees a log-mel spectrogram of 128 bands by 128 columns; a patch of the transformer spans exactly one
slot of the world. The class is CLIPModel with one channel, so that nothing of our own is needed to load it. A reward
that was shown only clean truth hardly ranks what a generator makes, which is broken in ways that truth never is: half
of every batch is wrong in one word, or malformed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models import LongCatAudioDiTVae
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.audio_utils import mel_filter_bank

from pipelines.starter.image.clip import contrastive_loss, tokenise_prompts
from pipelines.starter.music import world
from pipelines.starter.music.autoencoder import FRAMES, WIDTH, decode_latents
from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage
from pipelines.starter.tokenizer import LENGTH

FFT, HOP, BANDS = 2048, 256, 128  # samples of a column and between two, and mel bands
HIDDEN = 96  # width of both towers
# what rewards/audio/starter_clap.py reads from the saved folder's preprocessor_config.json
FRONT = {
    "sampling_rate": world.RATE, "samples": world.LENGTH, "n_fft": FFT, "hop_length": HOP, "bands": BANDS,
    "min_frequency": 40.0, "max_frequency": 7900.0, "floor": 1.0, "mean": 3.0, "scale": 3.0,
}  # fmt: skip
BUZZ = 0.25  # greatest error of a latent, whose deviation is 1, that clips are trained with
SLOTS_OF = {"mode": world.MODES, "articulation": world.ARTICULATIONS, "beat": world.BEATS}
PARTS_OF = {"direction": world.DIRECTIONS, "register": world.REGISTERS, "timbre": world.TIMBRES}


@functools.cache
def _mel_filters() -> Tensor:
    """[128,1025]"""
    bank = mel_filter_bank(
        FFT // 2 + 1, BANDS, FRONT["min_frequency"], FRONT["max_frequency"], world.RATE, mel_scale="htk"
    )
    return torch.from_numpy(bank.T.copy()).float()


def log_mel_spectrogram(waves: Tensor) -> Tensor:
    """[B,32768] -> [B,1,128,128], log-mel bands by columns, mostly within [-1,2]."""
    bins = torch.stft(waves, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)[..., :-1]
    power = torch.view_as_real(bins).square().sum(-1)
    return ((_mel_filters() @ power + FRONT["floor"]).log()[:, None] - FRONT["mean"]) / FRONT["scale"]


def new_clap(tokenizer: CLIPTokenizer) -> CLIPModel:
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(hidden_size=HIDDEN, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=LENGTH, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id,
                projection_dim=64, **special)  # fmt: skip
    audio = dict(hidden_size=HIDDEN, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, num_channels=1,
                 image_size=BANDS, patch_size=16, projection_dim=64)  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=audio, projection_dim=64))


def attribute_indices(piece: world.Piece) -> list[int]:
    """The nine attributes as numbers."""
    indices = [list(options).index(getattr(piece, name)) for name, options in SLOTS_OF.items()]
    for phrase in (piece.first, piece.second):
        indices += [list(options).index(getattr(phrase, name)) for name, options in PARTS_OF.items()]
    return indices


class AttributeHeads(nn.Module):
    """Which piece a clip is, attribute by attribute, and whether it is well formed: heads that shorten the plateau
    before the contrast says anything. Thrown away."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [len(o) for o in (*SLOTS_OF.values(), *PARTS_OF.values(), *PARTS_OF.values())]
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in sizes)
        self.sound = nn.Linear(width, 1)

    def forward(self, embeddings: Tensor, pieces: Sequence[world.Piece | None]) -> tuple[Tensor, Tensor]:
        rows = [i for i, piece in enumerate(pieces) if piece]
        truth = torch.tensor([attribute_indices(piece) for piece in pieces if piece])
        losses = (F.cross_entropy(h(embeddings[rows]), truth[:, j]) for j, h in enumerate(self.heads))
        what = sum(losses, embeddings.new_zeros(())) / len(self.heads)
        formed = torch.tensor([float(piece is not None) for piece in pieces])
        return what, F.binary_cross_entropy_with_logits(self.sound(embeddings)[:, 0], formed)


def corrupt_wave(wave: Tensor, other: Tensor, rng: random.Random, noise: torch.Generator) -> Tensor:
    """A clip [32768] that is no piece any more: one to four of its slots are another piece's, or mixed with them,
    silent, or drowned in noise."""
    slots, strange = wave.clone().view(world.SLOTS, world.SLOT), other.view(world.SLOTS, world.SLOT)
    kind = rng.choice(("replaced", "mixed", "mixed", "silent", "noise"))
    for i in rng.sample(range(world.SLOTS), rng.randint(1, 4)):
        if kind == "replaced":
            slots[i] = strange[(i + rng.randint(1, world.SLOTS - 1)) % world.SLOTS]
        elif kind == "mixed":
            share = rng.uniform(0.3, 0.7)
            slots[i] = (1 - share) * slots[i] + share * strange[rng.randrange(world.SLOTS)]
        elif kind == "silent":
            slots[i] = 0
        else:
            slots[i] += rng.uniform(0.1, 0.3) * torch.randn(world.SLOT, generator=noise)
    return slots.view(-1)


@torch.no_grad()
def latent_error_sounds(vae: LongCatAudioDiTVae, *, seed: int, n: int = 64) -> Tensor:
    """[n,32768]: decoded white noise, the sound of a latent's error."""
    draw = Draw.at_step(seed, "music buzz")
    return decode_latents(vae, torch.randn(n, FRAMES, WIDTH, generator=draw.torch))


def augment_waves(waves: Tensor, buzz: Tensor, draw: Draw) -> Tensor:
    """Level, a little hiss, and as much of a latent's error as leaves a piece what it is, on all clips alike: none of
    it tells right from wrong, and a generated clip has all of it."""
    n = len(waves)
    level = 0.6 + 0.5 * torch.rand(n, 1, generator=draw.torch)
    hiss = 0.01 * torch.rand(n, 1, generator=draw.torch) ** 2
    error = BUZZ * torch.rand(n, 1, generator=draw.torch)
    rows = torch.randint(len(buzz), (n,), generator=draw.torch)
    strange = torch.stack([buzz[i].roll(world.FRAME * draw.python.randrange(FRAMES)) for i in rows])
    return level * (waves + error * strange) + hiss * torch.randn(waves.shape, generator=draw.torch)


def draw_batch(batch: int, draw: Draw) -> tuple[Tensor, list[world.Piece | None], list[str]]:
    """2B clips [2B,32768], the piece that each is (None: malformed), and every text of the batch."""
    rng, source = draw.python, world.training_pieces(draw.python)
    true = [next(source) for _ in range(batch)]
    wrong = [world.near_miss(piece, rng) for piece in true]
    waves = world.render_pieces(true + wrong, rng, draw.torch)
    pieces: list[world.Piece | None] = [*true, *wrong]
    for i in range(batch, 2 * batch, 2):
        base, other = rng.sample(range(batch), 2)
        waves[i], pieces[i] = corrupt_wave(waves[base], waves[other], rng, draw.torch), None
    texts = [piece.prompt for piece in pieces if piece]
    texts += [world.near_miss(piece, rng).prompt for piece in true for _ in range(2)]
    return waves, pieces, list(dict.fromkeys(texts))


def train_clap(
    folder: Path, vae: LongCatAudioDiTVae, tokenizer: CLIPTokenizer, *, seed: int, steps: int, batch: int = 24
) -> tuple[CLIPModel, dict]:
    torch.manual_seed(seed + 6)
    clap = new_clap(tokenizer)
    heads, buzz = AttributeHeads(HIDDEN), latent_error_sounds(vae, seed=seed)

    def clap_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        waves, pieces, texts = draw_batch(batch, draw)
        embeddings = clap.vision_model(log_mel_spectrogram(augment_waves(waves, buzz, draw))).pooler_output  # [2B,96]
        audio = F.normalize(clap.visual_projection(embeddings), dim=-1)
        text = F.normalize(
            clap.text_projection(clap.text_model(tokenise_prompts(tokenizer, texts)).pooler_output), dim=-1
        )
        text_index = {t: i for i, t in enumerate(texts)}
        caption_index = torch.tensor([text_index[piece.prompt] if piece else -1 for piece in pieces])
        truth = caption_index[:, None] == torch.arange(len(texts))
        logits = clap.logit_scale.clamp(max=4.0).exp() * audio @ text.T
        main = contrastive_loss(logits, truth, caption_index)
        what, formed = heads(embeddings, pieces)
        hit_rate = (logits[:batch].argmax(1) == caption_index[:batch]).float().mean()
        metrics = {"clap": main.item(), "what": what.item(), "formed": formed.item(), "hit": hit_rate.item()}
        return main + what + formed, metrics

    optimizer = torch.optim.AdamW([*clap.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    stage = TrainingStage("music_clap", {"clap": clap, "heads": heads}, optimizer, clap_loss, steps)
    log = train_stage(stage, folder, seed=seed)
    return clap.eval().requires_grad_(False), log | {"samples": log["steps"] * 2 * batch}
