"""Set rewards over an embedder, and sets of examples in folders and text files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reward_fixtures
import torch
from PIL import Image
from set_fixtures import ALL, BLUE, GREEN, RED, STARTER, Flat, ask, cubic, draw, drawn, pictures, save, sound

from rewards.sets import exemplar
from rewards.sets.exemplar import Embedder, Exemplar, PictureEmbedder
from rewards.sets.frechet import Frechet
from rewards.sets.mmd import CMMD, KAD, KID, GaussianKernel, median_distance, mmd_squared
from rewards.sets.vendi import Vendi
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    exemplar._load_target.cache_clear()
    yield tmp_path / "cache"
    exemplar._load_target.cache_clear()


# The rewards


@pytest.mark.parametrize("name", ALL)
def test_a_set_reward_is_one_number_that_is_higher_for_the_better_set(name):
    reward, y = ALL[name], draw(40, 6)
    assert isinstance(reward, Reward) and reward.spec.scope == "set" and reward.spec.name == name
    near, far = draw(20, 6, 1), 0.1 * draw(20, 6, 2) + 3
    assert ask(reward, near, y).shape == () and ask(reward, near, y).dtype == torch.float32
    assert ask(reward, near, y) > ask(reward, far, y)


@pytest.mark.parametrize("name", ALL)
def test_a_sample_that_is_not_finite_is_left_out_of_the_set(name):
    x, y = draw(12, 6), draw(40, 6, 1)
    whole = ask(ALL[name], x, y)
    bad = torch.cat([x[:5], torch.full((1, 6), torch.nan).double(), x[5:]])
    torch.testing.assert_close(ask(ALL[name], bad, y), whole)
    assert ask(ALL[name], bad[5:6], y).isnan()


@pytest.mark.parametrize("name", ["frechet", "kid", "kad", "cmmd", "prdc"])
def test_a_set_too_small_is_nan_and_pushes_nothing(name):
    one = sound(draw(1, 6))
    one.data.requires_grad_()
    score = ALL[name](media=one, prompts=[""], references=sound(draw(40, 6, 1)))
    assert score.isnan()
    if ALL[name].spec.differentiable:
        (g,) = torch.autograd.grad(score, one.data)
        assert not g.any()


@pytest.mark.parametrize("name", [n for n, r in ALL.items() if r.spec.differentiable])
def test_the_gradient_of_a_set_reward_reaches_the_media(name):
    media = sound(draw(8, 6))
    media.data.requires_grad_()
    score = ALL[name](media=media, prompts=[""] * 8, references=sound(draw(40, 6, 1)))
    (g,) = torch.autograd.grad(score, media.data)
    assert g.isfinite().all() and (g.flatten(1).norm(dim=1) > 0).all()


def test_a_reward_that_compares_says_so_until_it_has_its_reference(tmp_path):
    assert Frechet(model=Flat()).spec.needs == {"reference"}
    torch.save(draw(1, 6)[:, None], tmp_path / "a.pt")
    assert Frechet(model=Flat(), reference=str(tmp_path)).spec.needs == frozenset()
    with pytest.raises(BadInput, match="kid compares with a set"):
        ask(ALL["kid"], draw(4, 6))
    with pytest.raises(BadInput, match="frechet judges audio and image, not video"):
        ALL["frechet"](media=Media(torch.rand(2, 3, 3, 4, 4), "video", 8.0), prompts=["", ""])


def test_the_limit_is_a_setting_and_warns_where_there_is_no_line(caplog):
    q = draw(2000, 6, 1)
    assert ask(Frechet(model=Flat(), infinity=True), draw(600, 6), q) > ask(ALL["frechet"], draw(600, 6), q)
    assert "too few" not in caplog.text
    ask(Frechet(model=Flat(), infinity=True), draw(10, 6), q)
    assert "too few" in caplog.text


def test_published_distances_are_mmd_under_their_kernels_and_scales():
    x, y = (torch.nn.functional.normalize(draw(n, 6, n), dim=1).float() for n in (9, 11))
    a, b = x.double(), y.double()
    told = {
        KID: mmd_squared(a * 6**0.5, b * 6**0.5, cubic),
        KAD: 100 * mmd_squared(a, b, GaussianKernel(median_distance(b))),
        CMMD: 1000 * mmd_squared(a, b, GaussianKernel(10.0)),
    }
    for cls, value in told.items():
        assert ask(cls(model=Flat()), x, y).item() == pytest.approx(-value.item(), rel=1e-5)


# Sets of examples


def test_a_folder_of_red_pictures_is_nearer_to_red_than_to_blue(tmp_path):
    folder = save(drawn("a red circle", 6), tmp_path / "red")
    red, blue = drawn("a red circle", 5, seed=1), drawn("a blue circle", 5, seed=1)
    assert (red.data != drawn("a red circle", 6).data[:5]).any()
    for cls in (Frechet, KID, KAD, CMMD):
        reward = cls(model=STARTER, reference=folder)
        scores = [reward(media=m, prompts=[""] * 5) for m in (red, blue)]
        assert scores[0] > scores[1] and scores[0].isfinite(), cls
    for by in ("mean", "nearest"):
        reward = Exemplar(model=STARTER, reference=folder, by=by)
        mixed = reward(media=Media.cat([red, blue]), prompts=[""] * 10)
        assert mixed[:5].min() > mixed[5:].max(), by
    blues = Exemplar(model=STARTER, reference=save(drawn("a blue circle", 6), tmp_path / "blue"))
    mixed = blues(media=Media.cat([red, blue]), prompts=[""] * 10)
    assert mixed[5:].min() > mixed[:5].max(), "the same pictures, other examples: the other order"


def test_words_are_examples_too(tmp_path):
    """Captions in a text file judge pictures through the shared space."""
    (tmp_path / "red.txt").write_text("a red circle\n\na large red circle\na small red circle\n")
    red, blue = drawn("a red circle", 4, seed=1), drawn("a blue circle", 4, seed=1)
    reward = Exemplar(model=STARTER, reference=str(tmp_path / "red.txt"))
    scores = reward(media=Media.cat([red, blue]), prompts=[""] * 8)
    assert scores[:4].min() > scores[4:].max()
    (tmp_path / "red.txt").write_text("a blue circle\na large blue circle\n")
    other = Exemplar(model=STARTER, reference=str(tmp_path))(media=Media.cat([red, blue]), prompts=[""] * 8)
    assert other[4:].min() > other[:4].max()
    distances = Frechet(model=STARTER, reference=str(tmp_path))
    assert distances(media=blue, prompts=[""] * 4) > distances(media=red, prompts=[""] * 4)


def test_an_exemplar_score_is_each_samples_own_and_its_slope_is_its_gradient(tmp_path):
    folder = save(pictures([RED, GREEN]), tmp_path / "set")
    media = pictures([RED, BLUE, GREEN], seed=3)
    for by in ("mean", "nearest"):
        reward = Exemplar(model=STARTER, reference=folder, by=by)
        together = reward(media=media, prompts=[""] * 3)
        alone = torch.cat([reward(media=media[b], prompts=[""]) for b in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        data = media.data.clone().requires_grad_()
        (g,) = torch.autograd.grad(reward(media=replace(media, data=data), prompts=[""] * 3).sum(), data)
        step = 0.002 * g / g.norm()
        up, down = (reward(media=replace(media, data=media.data + s), prompts=[""] * 3).sum() for s in (step, -step))
        assert ((up - down) / 0.004).item() == pytest.approx(g.norm().item(), rel=0.05)


def test_examples_are_embedded_once_and_again_only_when_their_content_changed(tmp_path, own_cache):
    for n, row in enumerate(draw(5, 6)):
        torch.save(row[None, None], tmp_path / f"{n}.pt")

    def judged(cls=KAD):
        """The score, and how many samples were embedded besides the batch's four."""
        exemplar._load_target.cache_clear()  # as another process would begin
        Flat.seen.clear()
        score = cls(model=Flat(), reference=str(tmp_path))(media=sound(draw(4, 6, 1)), prompts=[""] * 4)
        return score.item(), sum(Flat.seen) - 4

    first, embedded = judged()
    assert embedded == 5
    assert judged() == (first, 0)
    assert judged(KID)[1] == 0, "rows serve every reward that looks at rows"
    assert judged(Frechet)[1] == 5 and judged(Frechet)[1] == 0, "moments are kept by themselves"
    assert len(list(own_cache.rglob("*.safetensors"))) == 2
    (tmp_path / "0.pt").rename(tmp_path / "00.pt")
    assert judged() == (first, 0), "a name is no content"
    torch.save(draw(1, 6, 9)[:, None], tmp_path / "00.pt")
    changed, embedded = judged()
    assert changed != first and embedded == 5
    assert not list(own_cache.rglob("*.tmp"))


def test_other_weights_are_other_statistics(tmp_path):
    folder = save(pictures([RED, BLUE, GREEN]), tmp_path / "set")
    one, two = (PictureEmbedder(reward_fixtures.clip_folder(tmp_path / f"clip{seed}", seed=seed)) for seed in (1, 2))
    cpu = torch.device("cpu")
    assert one.fingerprint(cpu) != two.fingerprint(cpu)
    rows = [exemplar.load_examples(folder, e, cpu, "rows") for e in (one, two, one)]
    assert torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1])


def test_loading_prepares_the_reference_and_keeps_no_model_alive(tmp_path, own_cache):
    import gc
    import weakref

    from rewards.encoders import image_text

    model = reward_fixtures.clip_folder(tmp_path / "clip")
    reward = KID(model=model, reference=save(pictures([RED, BLUE, GREEN]), tmp_path / "set"))
    reward.check()
    assert not own_cache.exists(), "checking loads nothing"
    reward.load()
    assert len(list(own_cache.rglob("*.safetensors"))) == 1
    net = weakref.ref(image_text.load_encoder(model, "cpu").net)
    image_text._load_cached.cache_clear()
    gc.collect()
    assert net() is None


def test_a_broken_or_ambiguous_reference_is_one_sentence(tmp_path):
    def check(path):
        Frechet(model=STARTER, reference=str(path)).check()

    with pytest.raises(BadInput, match="does not exist"):
        check(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no examples"):
        check(tmp_path / "empty")
    folder = tmp_path / "both"
    save(pictures([RED]), folder)
    (folder / "words.txt").write_text("a red square")
    with pytest.raises(BadInput, match=r"both media and text \(00.png, words.txt\)"):
        check(folder)
    (folder / "words.txt").unlink()
    one = Frechet(model=STARTER, reference=str(folder))
    with pytest.raises(BadInput, match="has 1 examples; frechet needs 2"):
        one(media=pictures([RED, RED]), prompts=["", ""])
    (folder / "00.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"00.png: can't be read as a picture"):
        Exemplar(model=STARTER, reference=str(folder))(media=pictures([RED]), prompts=[""])
    with pytest.raises(BadInput, match="most reference examples are identical"):
        ask(ALL["kad"], draw(4, 6), torch.ones(5, 6))
    (tmp_path / "words.txt").write_text("a sound")
    with pytest.raises(BadInput, match="reads no text"):
        ask(Exemplar(model=Flat(), reference=str(tmp_path / "words.txt")), draw(2, 6))


def test_pictures_of_other_shapes_and_modes_are_examples_as_they_look(tmp_path):
    """Turned upright, laid on white, grey as colour: the same picture in other files is the same point."""
    rgb = (pictures([RED], size=48).data[0] * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(rgb)
    image.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn by a quarter to see it
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    read = PictureEmbedder(STARTER).read
    assert torch.equal(read(tmp_path / "plain.png").data, read(tmp_path / "turned.png").data)
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read(tmp_path / "clear.png").data == 1).all() and read(tmp_path / "clear.png").data.shape == (1, 3, 6, 8)
    rows = exemplar.load_examples(str(tmp_path), PictureEmbedder(STARTER), torch.device("cpu"), "rows")
    assert rows.shape[0] == 3 and rows.isfinite().all()


def test_a_clip_is_the_direction_of_its_frames():
    frames = pictures([RED, RED, BLUE, BLUE])
    clip = Media(frames.data.view(2, 2, 3, 32, 32), "video", 8.0)
    embed = PictureEmbedder(STARTER)
    assert isinstance(embed, Embedder) and isinstance(Flat(), Embedder)
    rows, singles = embed(clip), embed(frames)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(rows[0], torch.nn.functional.normalize(singles[:2].mean(0), dim=0))


def test_embedders_of_other_media_plug_in_and_rewards_say_what_they_then_judge():
    assert Vendi(model=Flat()).spec.modalities == {"audio", "image"}
    assert Vendi().spec.modalities == {"image", "video"}
    assert Vendi(model=STARTER) == Vendi(model=STARTER) != Vendi(model=STARTER, q=2)
