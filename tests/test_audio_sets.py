"""Sets of sounds: FAD, KAD and Vendi agree with numpy and scipy, song by song too; references are folders or words."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import sound_fixtures as fixtures
import torch
from sound_fixtures import heard, tone, wav16

from rewards import build
from rewards.encoders.load_audio import load_audio_encoder
from rewards.sets.audio_sets import FAD, AudioExemplar, AudioKAD, AudioVendi, SongSet
from rewards.sets.set_credit import LeaveOneOut, Witness
from workbench.core.errors import BadInput
from workbench.core.types import Media


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ears")


@pytest.fixture(scope="module")
def clap(folder):
    return fixtures.clap_folder(folder / "clap")


@pytest.fixture(scope="module")
def vggish(folder):
    return fixtures.vggish_file(folder / "vggish")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


# Against implementations from scratch


def points(judge, media: Media) -> np.ndarray:
    return judge.embed_windows(media).flatten(0, 1).double().numpy()


def frechet_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root))


def kad_by_numpy(x: np.ndarray, y: np.ndarray) -> float:
    def squared(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    within = squared(y, y)[np.triu_indices(len(y), 1)]
    width = np.sort(np.sqrt(within))[(len(within) - 1) // 2]
    kernel = [np.exp(-squared(*pair) / (2 * width**2)) for pair in ((x, x), (y, y), (x, y))]
    m, n = len(x), len(y)
    own = (kernel[0].sum() - m) / (m * (m - 1)) + (kernel[1].sum() - n) / (n * (n - 1))
    return 100 * float(own - 2 * kernel[2].mean())


def vendi_by_numpy(x: np.ndarray) -> float:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    values = values[values > 1e-13]
    return float(np.exp(-(values * np.log(values)).sum()))


@pytest.mark.parametrize("model", ["clap", "logmel", "vggish"])
def test_fad_kad_and_vendi_agree_with_numpy_and_scipy_to_1e_4(model, clap, vggish):
    """VGGish's 12 and CLAP's 24 dimensions have more windows than that; log-mel's 128 have fewer."""
    name = {"clap": clap, "vggish": vggish, "logmel": "logmel"}[model]
    media, other = heard(9, 1.0, 16000), heard(10, 1.0, 16000, seed=3)
    say = {"media": media, "prompts": [""] * 9, "references": other}
    fad, kad, vendi = (kind(model=name, window=0.2, rows="windows") for kind in (FAD, AudioKAD, AudioVendi))
    x, y = points(fad, media), points(fad, other)
    if model != "logmel":
        assert -fad(**say).item() == pytest.approx(frechet_by_scipy(x, y), rel=1e-4)
    assert -kad(**say).item() == pytest.approx(kad_by_numpy(x, y), rel=1e-4)
    assert vendi(**say).item() == pytest.approx(vendi_by_numpy(x), rel=1e-4)


def test_a_songs_distance_is_that_of_its_own_windows(clap, vggish):
    media, other = heard(3, 1.0, 16000), heard(6, 1.0, 16000, seed=3)
    fad = FAD(model=vggish, window=0.2, hop=0.04)
    songs, y = SongSet(fad)(media=media, prompts=[""] * 3, references=other), points(fad, other)
    assert songs.shape == (3,)
    for b in range(3):
        assert -songs[b].item() == pytest.approx(frechet_by_scipy(points(fad, media[b]), y), rel=1e-4)
    vendi = SongSet(AudioVendi(model=clap, window=0.25))
    alone = AudioVendi(model=clap, window=0.25, rows="windows")
    one_by_one = [alone(media=media[b], prompts=[""]).item() for b in range(3)]
    assert vendi(media=media, prompts=[""] * 3).tolist() == pytest.approx(one_by_one)


def test_a_song_of_one_window_has_no_distance_and_a_broken_one_spoils_no_other():
    media, other = heard(3, 1.0, 16000), heard(3, 1.0, 16000, seed=3)
    say = {"prompts": [""] * 3, "references": other}
    assert SongSet(FAD(model="logmel"))(media=media, **say).isnan().all()
    judge = SongSet(FAD(model="logmel", window=0.25))
    whole = judge(media=media, **say)
    media.data[1, 0, 50] = torch.nan
    x = media.data.requires_grad_()
    scores = judge(media=Media(x, "audio", 16000.0), **say)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]])
    (gradient,) = torch.autograd.grad(scores[[0, 2]].sum(), x)
    assert gradient[[0, 2]].isfinite().all() and gradient[[0, 2]].any()


def test_a_set_nearer_to_its_reference_scores_higher_and_another_set_does_not(clap):
    """Low sounds against low ones, and high ones as the control."""

    def piece(low: int, seed: int) -> Media:
        g = torch.Generator().manual_seed(seed)
        rows = [tone(low * (1 + torch.rand(1, generator=g).item()), 0.5, 16000) for _ in range(8)]
        return Media(torch.stack(rows)[:, None] + 0.01 * torch.randn(8, 1, 8000, generator=g), "audio", 16000.0)

    reference = piece(100, 1)
    for judge in (FAD(model=clap, window=0.1), FAD(model="logmel", rows="songs"), AudioKAD(model="logmel", window=0.1)):
        near, far = (judge(media=piece(p, 2), prompts=[""] * 8, references=reference) for p in (100, 1600))
        assert near > far


def test_credit_of_sounds_keeps_the_windows_of_a_sound_together(clap):
    media, other = heard(4, 0.5, 16000), heard(5, 0.5, 16000, seed=3)
    say = {"media": media, "prompts": ["a"] * 4, "references": other}
    fad = FAD(model="logmel", window=0.1)
    credit = LeaveOneOut(fad)(**say)
    whole = fad(**say)
    for b in range(4):
        rest = Media(media.data[[i for i in range(4) if i != b]], "audio", 16000.0)
        left = fad(media=rest, prompts=["a"] * 3, references=other)
        assert credit[b].item() == pytest.approx(4 * (whole - left).item(), rel=1e-3)
    witness = Witness(AudioKAD(model=clap, window=0.1))(**say)
    assert witness.shape == (4,) and witness.isfinite().all()


# Reference sets on disk: sounds, or words


def test_a_folder_of_sounds_and_a_page_of_words_are_reference_sets(clap, tmp_path):
    """Cross-modal: CLAP's text embeddings as the distribution to come near (DRAGON)."""
    for n, row in enumerate(heard(4, 0.6, 22050, seed=3).data):
        wav16(tmp_path / f"{n}.wav", row, 22050)
    media = heard(5, 0.6, 16000)
    for kind in (FAD, AudioKAD, AudioExemplar):
        more = {} if kind is AudioExemplar else {"window": 0.2}
        judge = kind(model=clap, reference=str(tmp_path), **more)
        judge.check()
        assert judge.spec.needs == frozenset() and judge.spec.modalities == {"audio"}
        first = judge(media=media, prompts=[""] * 5)
        again = kind(model=clap, reference=str(tmp_path), **more)(media=media, prompts=[""] * 5)
        assert first.isfinite().all() and torch.equal(first, again)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "calm.txt").write_text("slow low organ\nslow falling flute\nlow organ\nslow flute")
    words = str(tmp_path / "words")
    rows = (
        load_audio_encoder(clap, "cpu")
        .embed_texts(["slow low organ", "slow falling flute", "low organ", "slow flute"])
        .double()
    )
    exemplar = AudioExemplar(model=clap, reference=words)(media=media, prompts=[""] * 5)
    x = load_audio_encoder(clap, "cpu")(media.data[:, 0], 16000.0).double()
    torch.testing.assert_close(exemplar.double(), torch.cosine_similarity(x, rows.mean(0)[None]), rtol=1e-4, atol=1e-5)
    assert FAD(model=clap, reference=words, window=0.2)(media=media, prompts=[""] * 5).isfinite()
    with pytest.raises(BadInput, match="hears and doesn't read"):
        FAD(model="logmel", reference=words)(media=media, prompts=[""] * 5)


def test_changed_examples_or_windows_are_not_answered_from_memory(tmp_path):
    media = heard(4, 0.6, 16000)
    for round_, seed in enumerate((3, 4)):
        home = tmp_path / str(round_)
        home.mkdir()
        for n, row in enumerate(heard(3, 0.6, 16000, seed=seed).data):
            wav16(home / f"{n}.wav", row, 16000)
    scores = {
        FAD(model="logmel", reference=str(tmp_path / r), window=w)(media=media, prompts=[""] * 4).item()
        for r in "01"
        for w in (0.1, 0.2)
    }
    assert len(scores) == 4


def test_song_sets_take_one_reward_of_windows():
    with pytest.raises(BadInput, match="does not judge windows of sounds"):
        build("song_set", of="brightness")
    with pytest.raises(BadInput, match="takes one set reward, without a weight"):
        build("song_set", of={"rewards.sets.audio_sets:FAD": {"weight": 2.0}})
    named = build("song_set", of={"rewards.sets.audio_sets:FAD": {"model": "logmel", "window": 0.1, "rows": "songs"}})
    assert named.of == FAD(model="logmel", window=0.1, rows="windows"), "a song's set is its windows"
