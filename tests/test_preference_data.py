"""Preference pairs: out of files in a seeded order, into latents, and learnt from."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import tiny
import tiny_trained
import torch
from PIL import Image
from pyarrow import parquet
from trainable_policy import TrainableMixture
from training_toys import RANKED, Value, gaussian_policy, set_weights

from pipelines import encoding
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.schema import build_dataclass
from workbench.core.types import Batch, Media, PairBatch
from workbench.engine.plan import plan_run
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.rollout import sample_groups, score_samples
from workbench.methods.training.dpo import DPO
from workbench.methods.training.kto import KTO
from workbench.runs import config, preference_data

SIZE = (3, 8, 8)


def grey(value: float, side: int = 8) -> Media:
    return Media(torch.full((1, 3, side, side), value), "image")


def shade(m: Media) -> int:
    return round(float(m.data.mean()) * 255)


def jpeg(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value,) * 3).save(out, "PNG")
    return out.getvalue()


def pick_a_pic(path, rows, **more):
    """Rows of (caption, shade 0, shade 1, label 0)."""
    columns = {
        "caption": [r[0] for r in rows],
        "jpg_0": [jpeg(r[1]) for r in rows],
        "jpg_1": [jpeg(r[2]) for r in rows],
        "label_0": [r[3] for r in rows],
        "label_1": [1.0 - r[3] for r in rows],
    }
    parquet.write_table(pa.table(columns | more), path, row_group_size=4)
    return str(path)


TEN = [(f"p{n}", 10 * n, 10 * n + 5, float(n % 2)) for n in range(10)]  # the picture of an even row's side 1 wins


# --- files -----------------------------------------------------------------------------------------------------------


def test_pick_a_pics_parquet_gives_each_pair_once_an_epoch_with_its_winner(tmp_path):
    found = preference_data.PreferencePairs(pick_a_pic(tmp_path / "a.parquet", TEN))
    assert found.check() == 10
    seen = {p: (shade(w), shade(b)) for p, w, b in (found[n] for n in range(10))}
    assert seen == {f"p{n}": ((10 * n, 10 * n + 5) if n % 2 else (10 * n + 5, 10 * n)) for n in range(10)}


def test_an_order_depends_on_seed_and_epoch_and_nothing_else(tmp_path):
    path = pick_a_pic(tmp_path / "a.parquet", TEN)
    order = lambda found, low: [found[n][0] for n in range(low, low + 10)]  # noqa: E731
    first, second = order(preference_data.PreferencePairs(path), 0), order(preference_data.PreferencePairs(path), 10)
    assert first != second and sorted(first) == sorted(second)
    assert first == order(preference_data.PreferencePairs(path), 0) and first != order(
        preference_data.PreferencePairs(path, seed=1), 0
    )


def test_a_resumed_order_goes_on_where_it_was(tmp_path):
    path = pick_a_pic(tmp_path / "a.parquet", TEN)
    whole = preference_data.PreferencePairs(path).batches(3, SIZE)
    batches = [next(whole) for _ in range(5)]
    again = next(preference_data.PreferencePairs(path).batches(3, SIZE, position=12))
    assert again.prompts == batches[4].prompts and again.seeds == batches[4].seeds
    assert torch.equal(again.winners.data, batches[4].winners.data) and len(set(again.seeds)) == 3


def test_what_lies_together_in_a_large_file_is_read_together(tmp_path):
    """Two row groups of four and one of two: an order changes the group twice an epoch, not ten times."""
    found = preference_data.PreferencePairs(pick_a_pic(tmp_path / "a.parquet", TEN))
    groups = [int(found[n][0][1:]) // 4 for n in range(10)]
    assert sum(a != b for a, b in zip(groups, groups[1:], strict=False)) == 2
    assert found._load_block.cache_info().misses == 3


def test_ties_and_rows_without_a_label_are_left_out_and_kept_ties_have_no_side(tmp_path):
    rows = [("a", 0, 5, 0.5), *[("b", 10, 15, 1.0)] * 2]
    path = pick_a_pic(tmp_path / "a.parquet", rows, has_label=[True, True, False])
    assert [preference_data.PreferencePairs(path)[0][0], len(preference_data.PreferencePairs(path))] == ["b", 1]
    path = pick_a_pic(tmp_path / "b.parquet", [("a", 0, 5, 0.5)])
    kept = preference_data.PreferencePairs(path, ties="keep")
    assert {shade(kept[n][1]) for n in range(30)} == {0, 5}
    with pytest.raises(BadInput, match="no pair with a winner"):
        len(preference_data.PreferencePairs(path))


def test_hpdv2s_lists_give_every_pair_with_a_preference(tmp_path):
    for n in range(3):
        media.write_media(grey(n / 10), tmp_path / f"{n}.png")
    names = [f"{n}.png" for n in range(3)]
    table = {"prompt": ["x", "y"], "image_path": [names, names[:2]], "human_preference": [[2, 1, 2], [0, 1]]}
    parquet.write_table(pa.table(table), tmp_path / "hpd.parquet")
    found = preference_data.PreferencePairs(str(tmp_path / "hpd.parquet"))
    told = sorted((p, shade(w), shade(b)) for p, w, b in (found[n] for n in range(len(found))))
    assert told == [("x", 0, 26), ("x", 51, 26), ("y", 26, 0)]


def votes(tmp_path, *rows):
    for n in range(3):
        media.write_media(grey(n / 10), tmp_path / f"{n}.png")
    lines = [{"prompt": "x", "a_path": f"{a}.png", "b_path": f"{b}.png", "winner": w} for a, b, w in rows]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "votes.jsonl")


def test_the_apps_votes_are_pairs_too(tmp_path):
    found = preference_data.PreferencePairs(votes(tmp_path, (0, 1, "b"), (1, 2, "a"), (0, 2, "tie")))
    assert sorted((shade(w), shade(b)) for _, w, b in (found[n] for n in range(len(found)))) == [(26, 0), (26, 51)]


def test_a_folder_is_all_its_files(tmp_path):
    votes(tmp_path, (0, 1, "b"))
    pick_a_pic(tmp_path / "a.parquet", TEN)
    assert (
        len(preference_data.PreferencePairs(str(tmp_path))) == 11
        and len(preference_data.PreferencePairs([str(tmp_path)] * 2)) == 22
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: pick_a_pic(d / "a.parquet", [*TEN[:5], ("x", 1, 2, 0.3)]), r"a.parquet, row 5: label_0"),
        (lambda d: pick_a_pic(d / "a.parquet", [("", 1, 2, 1.0)]), r"a.parquet, row 0: the prompt"),
        (lambda d: pick_a_pic(d / "a.parquet", TEN[:1], jpg_0=[b"no picture"]), r"a.parquet, row 0: jpg_0"),
        (
            lambda d: (parquet.write_table(pa.table({"x": [1]}), d / "b.parquet"), str(d / "b.parquet"))[1],
            "caption, jpg_0",
        ),
        (lambda d: ((d / "c.parquet").write_text("no"), str(d / "c.parquet"))[1], "c.parquet: can't be read"),
        (lambda d: votes(d, (0, 7, "a")), "votes.jsonl, line 1: .*7.png"),
        (lambda d: votes(d, (0, 1, "c")), "votes.jsonl, line 1: `winner`"),
        (lambda d: str(d / "none.csv"), "none.csv"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_file_and_row(tmp_path, change, said):
    with pytest.raises(BadInput, match=said):
        preference_data.PreferencePairs(change(tmp_path), strict=True).read_ahead()
    if "row 5" not in said:  # there are good ones beside it
        with pytest.raises(BadInput, match=said):
            preference_data.PreferencePairs(change(tmp_path)).read_ahead()


def test_pairs_that_can_not_be_used_are_left_out_and_counted_and_the_next_stand_in_for_them(tmp_path):
    """A broken picture, an empty one, no prompt, an unknown label, the same picture twice: five of ten."""
    pictures_0 = [jpeg(10 * n) for n in range(10)]
    pictures_0[2], pictures_0[5], pictures_0[8] = pictures_0[2][:40], b"", jpeg(85)
    captions = [f"p{n}" for n in range(10)]
    captions[3] = None
    labels = [float(n % 2) for n in range(10)]
    labels[7] = 0.3
    path = pick_a_pic(tmp_path / "a.parquet", TEN, jpg_0=pictures_0, caption=captions, label_0=labels)
    good = {"p0", "p1", "p4", "p6", "p9"}
    found = preference_data.PreferencePairs(path)
    found.read_ahead()
    assert (
        found.describe_left_out().startswith("5 pairs are left out: ")
        and "row 3: the prompt" in found.describe_left_out()
    )
    assert {found[n][0] for n in range(16)} == good
    late = preference_data.PreferencePairs(path)  # nothing read ahead, from another position: the same pairs
    assert [late[n][0] for n in range(15, -1, -1)] == [found[n][0] for n in range(15, -1, -1)]
    with pytest.raises(BadInput, match="row 3: the prompt|row 7: label_0"):
        len(preference_data.PreferencePairs(path, strict=True))
    kept = preference_data.PreferencePairs(path, ties="keep")
    assert {kept[n][0] for n in range(16)} == good | {"p8"}
    same = pick_a_pic(tmp_path / "b.parquet", [(f"p{n}", n, n, 1.0) for n in range(3)])
    with pytest.raises(BadInput, match="none can be used; 3 pairs are left out: .*both media are the same"):
        preference_data.PreferencePairs(same).read_ahead()


def test_pairs_that_hardly_differ_are_left_out_where_a_gap_is_asked_for(tmp_path):
    rows = [("near", 100, 101, 1.0), ("far", 100, 200, 1.0), ("middle", 100, 120, 0.0)]
    path = pick_a_pic(tmp_path / "a.parquet", rows)
    names = lambda gap: {preference_data.PreferencePairs(path, min_gap=gap)[n][0] for n in range(3)}  # noqa: E731
    assert names(0.0) == {"near", "far", "middle"} and names(0.01) == {"far", "middle"} and names(0.2) == {"far"}
    found = preference_data.PreferencePairs(path, min_gap=0.2)
    found.read_ahead()
    assert "2 of the pairs that were read differ by less than 0.2" in found.describe_left_out()
    assert found.describe_left_out(faults_only=True) == ""
    assert preference_data.measure_gap(grey(0.25, 8), grey(0.75, 20)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_the_columns_that_others_use_say_who_won(tmp_path, suffix):
    for n in range(3):
        media.write_media(grey(n / 10), tmp_path / f"{n}.png")
    for columns in (("pos_path", "neg_path"), ("chosen", "rejected")):
        rows = [{"prompt": "x", columns[0]: f"{n + 1}.png", columns[1]: f"{n}.png"} for n in range(2)]
        path, mark = tmp_path / f"pairs.{suffix}", "\t" if suffix == "tsv" else ","
        if suffix == "parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
        else:
            path.write_text("\n".join(mark.join(row) for row in ([*rows[0]], *(r.values() for r in rows))))
        found = preference_data.PreferencePairs(str(path))
        assert sorted((shade(w), shade(b)) for _, w, b in (found[n] for n in range(2))) == [(26, 0), (51, 26)]
        assert ("line 3: not valid JSON" in found.describe_left_out()) == (suffix == "jsonl")
        assert len(found.input_files()) == 4


def test_media_are_scaled_to_cover_a_pipelines_size_and_cut_to_its_middle():
    wide = Media(torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 8), torch.zeros(1, 3, 4, 4)], 3), "image")
    assert torch.equal(preference_data.fit_to_size(wide, (3, 4, 8)).data, torch.ones(1, 3, 4, 8))
    assert (
        preference_data.fit_to_size(wide, (3, 8, 8)).data.shape == (1, 3, 8, 8)
        and preference_data.fit_to_size(wide, (3, 8, 8)).data[..., 1:-1].min() > 0.9
    )
    clip = Media(torch.rand(1, 6, 3, 4, 4), "video", 8.0)
    assert torch.equal(preference_data.fit_to_size(clip, (5, 3, 4, 4)).data, clip.data[:, :5])
    with pytest.raises(BadInput, match="6 frames"):
        preference_data.fit_to_size(clip, (9, 3, 4, 4))
    with pytest.raises(BadInput, match="pictures were found where this pipeline makes clips"):
        preference_data.fit_to_size(wide, (5, 3, 4, 4))


def test_pairs_of_sounds_are_brought_to_a_pipelines_rate_and_refused_where_a_vocoder_makes_them(tmp_path):
    for n, level in enumerate((0.1, 0.4)):
        media.write_media(Media(torch.full((1, 1, 800), level), "audio", 8000.0), tmp_path / str(n))
    row = {"prompt": "x", "a_path": "0.wav", "b_path": "1.wav", "winner": "b"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row))
    pairs = {"files": str(tmp_path / "votes.jsonl")}
    batch = preference_data.PreferencePairs(**pairs).batch(0, 1, (2, 2000), 16000.0)
    assert batch.winners.rate == 16000.0 and batch.winners.data.shape == (1, 2, 2000)
    assert batch.winners.data[0, :, 400:1200].mean() > 0.35 and batch.winners.data[..., 1700:].abs().max() == 0.0
    values = {"name": "x", "pipeline": "starter-music", "method": "dpo", "pairs": pairs, "reward": "loudness"}
    values |= {"prompts": ["x", "y"], "test": ["z"], "train": {"rounds": 1}}
    assert plan_run(build_dataclass(config.RunConfig, values, "x")).pairs.check() == 1
    with pytest.raises(BadInput, match="audioldm2-music makes its sounds by a vocoder"):
        plan_run(build_dataclass(config.RunConfig, values | {"pipeline": "audioldm2-music"}, "x"))


# --- into latents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [f"{n}Pipeline" for n in ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage", "Wan")],
)
def test_decoding_what_was_encoded_is_the_autoencoders_own_round_trip(name):
    """So every convention between autoencoder and last state is undone: packing, scale, shift, means. Control: another
    scale is seen."""
    policy = tiny.policy(name)
    x = torch.rand(2, *policy.size, generator=torch.Generator().manual_seed(1))
    latents = policy.encode(Media(x, policy.modality, policy.rate))
    assert latents.shape[1:] == policy.structure.state.shape[1:] and policy.nfe == 0
    vae, y = policy.pipe.vae, x * 2 - 1
    y = y.transpose(1, 2) if policy.modality == "video" else y[:, :, None] if name.startswith("Qwen") else y
    with torch.no_grad():
        z = vae.encode(y).latent_dist.mode()
        own, ours = vae.decode(z, return_dict=False)[0], policy.decode(latents, ("a", "b")).data
        given, off = (encoding.capture_decoder_input(policy, c * latents[:1]) for c in (1.0, 1.05))
    own = own.transpose(1, 2) if policy.modality == "video" else own[:, :, 0] if own.dim() == 5 else own
    torch.testing.assert_close(ours, (own / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-6)
    torch.testing.assert_close(given, z[:1], rtol=1e-5, atol=1e-5)
    assert (off - z[:1]).abs().max() > 1e-3


def test_media_of_another_size_are_refused():
    policy = tiny.policy("StableDiffusionPipeline")
    with pytest.raises(BadInput, match="3x8x8 .* 3x16x16"):
        policy.encode(grey(0.5))


# --- and learnt from -------------------------------------------------------------------------------------------------


class Encoding(TrainableMixture):
    """Pictures are their own latents, as its decoder has it."""

    def encode(self, media: Media) -> torch.Tensor:
        return media.data[:, : self.shape[0]]


def policy_with(method, adam=False, shape=(3, 1, 1)):
    policy = Encoding((0.0,), (1.0,), (1.0,), steps=5, shape=shape, adam=adam)
    return set_weights(policy, (0.3, -0.2)) if not adam else policy


def batch(seed=0, n=2, gap=1.0) -> PairBatch:
    x = torch.randn(2, n, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    media = [Media(x[0] + gap, "image"), Media(x[1] - gap, "image")]
    return PairBatch(("a", "b")[:n], tuple(range(seed, seed + n)), *media)


def test_one_update_of_dpo_on_pairs_is_equation_14_by_hand():
    method, given = DPO(beta=2.0, lr=0.0), batch()
    policy = policy_with(method)
    (event,) = method(policy, None, [given])
    total, right, winners_worse = np.zeros(2), 0.0, []
    for i, level in enumerate(policy.levels):
        for b, seed in enumerate(given.seeds):
            eps = seeded_normal([seed], (3, 1, 1), "eps", i, 0).numpy().ravel()
            said = []
            for x0 in (given.winners.data[b].numpy().ravel(), given.losers.data[b].numpy().ravel()):
                mean = level.a * (level.a * x0 + level.s * eps) / (level.a**2 + level.s**2)
                ours, reference = 0.3 + 0.8 * mean - x0, mean - x0
                said.append((mean, ours, np.mean(ours**2 - reference**2) / level.s**2))
            margin = -(said[0][2] - said[1][2])  # beta / 2 = 1
            winners_worse.append(said[0][2] > 0)
            for sign, (mean, ours, _) in zip((1, -1), said, strict=True):
                c = sign / (1 + math.exp(margin)) * 2 * ours / level.s**2 / 3
                total += np.array([c.sum(), (c * mean).sum()])
            right += (margin > 0) / (2 * policy.steps)
    np.testing.assert_allclose(policy.grads[0], total / (2 * policy.steps), rtol=1e-4)
    drifted = sum(worse for worse in winners_worse) / (2 * policy.steps)
    assert event.metrics["winner_drift"] == pytest.approx(drifted) and 0 < drifted < 1
    assert event.metrics["agrees"] == pytest.approx(right) and policy.nfe == 2 * 2 * 2 * policy.steps
    assert "reward" not in event.metrics and event.prompts == ("a", "a", "b", "b")


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_pairs_that_a_policys_own_samples_make_teach_what_they_would(name):
    """Ranked samples written down as pairs: the same gradient. KTO meets other noise, so its direction alone is
    compared."""
    method = replace(RANKED[name], group=2, anchor=0.0) if name == "dpo" else replace(RANKED[name], group=2)
    asked = Batch(("a", "b"), (5, 6))
    own = set_weights(gaussian_policy(method, shape=(3, 1, 1)), (0.3, -0.2))
    path = sample_groups(own, asked, 2)
    r = score_samples(Value(), path, 2).reward.view(2, 2)
    own.nfe = 0
    list(method(own, Value(), [asked]))
    best, worst = (2 * torch.arange(2) + pick(r, 1) for pick in (torch.argmax, torch.argmin))
    given = PairBatch(asked.prompts, asked.seeds, *(Media(path.x[rows, -1], "image") for rows in (best, worst)))
    policy = policy_with(method)
    list(method(policy, None, [given]))
    a, b = own.grads[0], policy.grads[0]
    if name == "dpo":
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9


@pytest.mark.parametrize("method", [DPO(beta=2.0, lr=0.05), KTO(beta=2.0, lr=0.05)], ids=["dpo", "kto"])
def test_samples_move_to_the_winners_and_with_the_pairs_turned_round_away(method):
    means = {}
    for turned in (False, True):
        policy = policy_with(method, adam=True)
        given = [batch(k) for k in range(10)]
        given = [replace(g, winners=g.losers, losers=g.winners) for g in given] if turned else given
        events = list(method(policy, None, given))
        means[turned] = policy.sample([""] * 64, seeds=range(64)).x[:, -1].mean().item()
        assert events[-1].metrics["agrees"] > 0.9 and events[0].metrics["agrees"] == 0.5
    assert means[False] > 0.2 and means[True] < -0.2


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_a_real_pipeline_learns_from_pictures(name):
    """Twelve updates on one pair and one noise: the winner comes to be denoised better. Control: turned round, the
    loser."""
    policy = tiny_trained.trainable(name)
    light, dark = (Media(torch.full((1, *policy.size), v), "image") for v in (0.9, 0.1))
    given, method = PairBatch(("a red cat",), (1,), light, dark), DPO(beta=5.0, lr=1e-3)
    first, *_, last = method(policy, None, [given] * 12)
    assert first.metrics["winner_drift"] == 0.0  # before the first update nothing is denoised worse
    assert last.metrics["loss"] < first.metrics["loss"] - 1e-3
    assert first.metrics["loss"] == pytest.approx(math.log(2)) and first.metrics["agrees"] == 0.5
    (turned,) = method(policy, None, [replace(given, winners=dark, losers=light)])
    assert turned.metrics["loss"] > math.log(2) and last.metrics["agrees"] > 0.5 > turned.metrics["agrees"]
