"""A log becomes pairs, step by step, and a simulated community with a known taste says whether they are right."""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.starter.image import community, rendering, world
from rewards import build_reward
from rewards.people import curation
from rewards.people.curation import Curation
from workbench.core.errors import BadInput
from workbench.core.types import Media
from workbench.feedback import social

DAY = 86_400
PLAIN = Curation(window=5, duplicates=-1, shares=(1.0, 0.0, 0.0), min_views=10)
HEADER = "item,prompt,path,user,event,time"


def shown(item: str, viewers: int, likers: int, day: float = 0.0, prompt: str = "a cat", first: int = 0) -> list[str]:
    """Rows of a log: people number `first` and on saw the item in the hours after `day`, and the first of them liked
    it."""
    rows = []
    for n in range(viewers):
        at = DAY * day + 100 * n
        rows.append(f"{item},{prompt},{item}.png,u{first + n},view,{at}")
        rows += [f"{item},{prompt},{item}.png,u{first + n},like,{at + 1}"] if n < likers else []
    return rows


def read(tmp_path: Path, *parts: list[str], name: str = "log.csv"):
    """The log of these rows, which something ends on day 40."""
    rows = [HEADER, *(row for part in parts for row in part), f"end,the end,end.png,u0,view,{40 * DAY}"]
    (tmp_path / name).write_text("\n".join(rows))
    return curation.read_log(tmp_path / name)


def preferred(curated: curation.Curated) -> set[tuple[str, str]]:
    return {(p["pos_item"], p["neg_item"]) for rows in curated.splits.values() for p in rows}


# --- curation --------------------------------------------------------------------------------------------------------


def test_popularity_is_a_share_of_those_who_saw_it_and_the_raw_count_is_not(tmp_path):
    log = read(tmp_path, shown("far", 200, 30), shown("near", 40, 22, first=1000))
    assert preferred(curation.curate_log(log, tmp_path, PLAIN)) == {("near", "far")}
    raw = dataclasses.replace(curation.RAW, window=5, shares=PLAIN.shares, confidence=0.6)
    assert preferred(curation.curate_log(log, tmp_path, raw)) >= {("far", "near")}


def test_the_posterior_is_the_beta_of_its_prior_and_data(tmp_path):
    log = read(tmp_path, shown("a", 40, 20), shown("b", 60, 6), shown("c", 30, 3))
    counts = curation.item_counts(log, curation.user_weights(log, PLAIN)["weight"], PLAIN).drop("end")
    items, prior = curation.shrink_rates(counts.assign(topic="one"), PLAIN)
    mean = 29 / 130  # one topic: its mean is the global one
    assert prior["mean"] == pytest.approx(mean)
    for name, n, k in (("a", 40, 20), ("b", 60, 6), ("c", 30, 3)):
        a, b = k + prior["strength"] * mean, n - k + prior["strength"] * (1 - mean)
        assert items.loc[name, "mean"] == pytest.approx(a / (a + b))
        assert items.loc[name, "var"] == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)))


def test_the_prior_strength_is_found_from_the_spread_beyond_chance():
    rng = np.random.default_rng(0)
    n = rng.integers(20, 60, 4000)
    for a, b in ((2, 6), (12, 28)):
        k = rng.binomial(n, rng.beta(a, b, 4000))
        items = curation.pd.DataFrame({"topic": "t", "n": n.astype(float), "k": k.astype(float), "events": k})
        prior = curation.shrink_rates(items, PLAIN)[1]
        assert prior["mean"] == pytest.approx(a / (a + b), rel=0.05)
        assert prior["strength"] == pytest.approx(a + b, rel=0.15)


def test_bots_and_people_who_like_everything_are_left_out_and_heavy_users_damped(tmp_path):
    flood = [f"x{n},a cat,x{n}.png,bot,like,{n}" for n in range(40)]  # 40 likes in 40 seconds
    fond = [f"x{n},a cat,x{n}.png,fond,{e},{600 * n}" for n in range(40) for e in ("view", "like")]
    heavy = [f"x{n},a cat,x{n}.png,heavy,view,{600 * n}" for n in range(40)]
    users = curation.user_weights(read(tmp_path, flood, fond, heavy), dataclasses.replace(PLAIN, cap=10))
    assert users.loc["bot", "why"] == "too fast" and users.loc["fond", "why"] == "likes everything"
    assert users.loc["bot", "weight"] == users.loc["fond", "weight"] == 0
    assert users.loc["heavy", "weight"] == pytest.approx(10 / 40)
    off = dataclasses.replace(PLAIN, cap=0, generous=2.0, burst=0)
    assert (curation.user_weights(read(tmp_path, flood, fond, heavy), off)["weight"] == 1).all()


def test_someone_counts_once_an_item_and_only_within_its_window(tmp_path):
    repeated = ["a,a cat,a.png,u0,like,50", "a,a cat,a.png,u0,share,51", "a,a cat,a.png,silent,remix,60"]
    late = [f"a,a cat,a.png,late{n},like,{6 * DAY}" for n in range(20)]
    log = read(tmp_path, shown("a", 20, 3), repeated, late)
    row = curation.item_counts(log, curation.user_weights(log, PLAIN)["weight"], PLAIN).loc["a"]
    assert (row["views"], row["n"], row["k"]) == (21, 21.0, 4.0)  # who remixed without a view has seen it too


def test_what_was_hardly_seen_is_no_negative_and_what_was_passed_over_is(tmp_path):
    log = read(tmp_path, shown("good", 60, 40), shown("seen", 60, 2), shown("unseen", 3, 0))
    assert preferred(curation.curate_log(log, tmp_path, PLAIN)) == {("good", "seen")}


def test_only_pictures_of_one_prompt_and_one_time_are_compared(tmp_path):
    log = read(tmp_path, shown("good", 60, 40), shown("dog", 60, 2, prompt="a dog"), shown("later", 60, 2, day=20))
    close = dataclasses.replace(PLAIN, apart=10)
    with pytest.raises(BadInput, match="no pair of the 3 pictures"):
        curation.curate_log(log, tmp_path, close)
    assert preferred(curation.curate_log(log, tmp_path, dataclasses.replace(close, apart=30))) == {("good", "later")}


def test_splits_share_no_prompt_and_each_lies_wholly_after_the_one_before(tmp_path):
    rng = np.random.default_rng(0)
    parts = []
    for n in range(60):
        day = rng.uniform(0, 20) + 15 * (n % 3 == 0)  # some prompts go on and on, others are early or late
        parts += [shown(f"p{n}{k}", 30, 25 if k else 2, day + k, prompt=f"prompt {n}", first=50 * n) for k in range(4)]
    c = dataclasses.replace(PLAIN, window=1, shares=(0.5, 0.2, 0.3))
    curated = curation.curate_log(read(tmp_path, *parts), tmp_path, c)
    posted = {p[0].split(",")[0]: float(p[0].split(",")[-1]) for p in parts}
    prompts_before = {
        s: [posted[i] for r in rows for i in (r["pos_item"], r["neg_item"])] for s, rows in curated.splits.items()
    }
    assert all(prompts_before.values())
    assert max(prompts_before["train"]) + c.window * DAY < min(prompts_before["val"])
    assert max(prompts_before["val"]) + c.window * DAY < min(prompts_before["test"])
    prompts = [{r["prompt"] for r in rows} for rows in curated.splits.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def test_a_copy_of_an_earlier_picture_is_left_out_and_another_colour_is_not(tmp_path):
    def scene(colour):
        thing = world.Thing("circle", colour, "large", 24, 30, 12)
        x = rendering.render_scenes([(thing,)], torch.Generator().manual_seed(1))[0]
        return Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy())

    scene("red").save(tmp_path / "first.png")
    scene("red").resize((96, 96)).save(tmp_path / "copy.png")
    scene("green").save(tmp_path / "other.png")
    parts = (shown("first", 40, 30), shown("copy", 40, 1, day=1), shown("other", 40, 1, day=2))
    curated = curation.curate_log(read(tmp_path, *parts), tmp_path, dataclasses.replace(PLAIN, duplicates=6))
    assert preferred(curated) == {("first", "other")}
    (tmp_path / "other.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="other.png: can't be read as a picture"):
        curation.curate_log(read(tmp_path, *parts), tmp_path, dataclasses.replace(PLAIN, duplicates=6))


def test_a_log_reads_the_same_from_each_format_and_kind_of_time(tmp_path):
    log = read(tmp_path, shown("a", 20, 3))
    rows = [dict(zip(HEADER.split(","), map(str, row), strict=True)) for row in log[HEADER.split(",")].to_numpy()]
    for row in rows:
        row["time"] = str(np.datetime64(int(float(row["time"])), "s"))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = curation.read_log(tmp_path / "log.jsonl")
    assert other["time"].tolist() == log["time"].tolist()
    assert (other[["item", "user", "event"]].astype(str) == log[["item", "user", "event"]].astype(str)).all().all()
    log.to_parquet(tmp_path / "log.parquet")
    assert curation.read_log(tmp_path / "log.parquet")["time"].tolist() == log["time"].tolist()


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    def missing(path):
        raise ImportError("no engine")

    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(curation.pd, "read_parquet", missing)
    with pytest.raises(BadInput, match="pip install pyarrow"):
        curation.read_log(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("", "no rows"),
        (HEADER, "no rows"),
        ("item,prompt,paths,user,event,time\na,b,c,d,view,1", "column 'path' is missing; did you mean 'paths'"),
        (HEADER + "\na,b,c,d,liked,1", "unknown event 'liked'; did you mean 'like'"),
        (HEADER + "\na,b,c,d,view,soon", "'soon' is no time"),
        (HEADER + "\na,b,c,,view,1", "column 'user' has empty values"),
        (HEADER + "\na,b,c,d,view,1\na,other,c,d,like,2", "item 'a' has two prompts"),
        (HEADER + "\na,b,c,d,view,1\na,b,c,d,like,2", "leaves no picture: 1 of 1"),
    ],
)
def test_a_bad_log_is_answered_in_one_sentence(tmp_path, text, says):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(BadInput, match=says) as error:
        social.curate_log(tmp_path / "log.csv", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_log_of_no_lines_has_no_rows_in_any_format(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(BadInput, match="log.jsonl: the log has no rows"):
        social.curate_log(tmp_path / "log.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("min_view=3", "did you mean 'min_views'"),
        ("engagements=[lik]", "did you mean 'like'"),
        ("shares=[0.5, 0.5]", "three shares"),
        ("confidence=1", "confidence"),
        ("measure=rates", "did you mean 'rate'"),
    ],
)
def test_a_bad_setting_is_answered_before_the_log_is_read(tmp_path, override, says):
    with pytest.raises(BadInput, match=says):
        social.curate_log(tmp_path / "none.csv", tmp_path, [override])


# --- the simulated community -----------------------------------------------------------------------------------------

SMALL = community.Community(prompts=24, items=8, users=200, days=20, views=90)
OF_SMALL = dataclasses.replace(PLAIN, window=2, duplicates=6)


@cache
def small_community() -> tuple[Path, dict[str, float]]:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    community.write_community(SMALL, folder)
    return folder, json.loads((folder / "truth.json").read_text())


def agreement(curated: curation.Curated, truth: dict[str, float]) -> float:
    return np.mean([truth[p["pos_item"]] > truth[p["neg_item"]] for p in curated.splits["train"]])


def test_curated_pairs_follow_the_true_taste_and_raw_counts_follow_it_less():
    folder, truth = small_community()
    log = curation.read_log(folder / "log.csv")
    curated = curation.curate_log(log, folder, OF_SMALL)
    raw = curation.curate_log(log, folder, dataclasses.replace(curation.RAW, window=2, shares=OF_SMALL.shares))
    assert len(curated.splits["train"]) > 50
    assert agreement(curated, truth) > 0.9
    assert agreement(curated, truth) > agreement(raw, truth) + 0.1
    lots = dict(zip(truth, np.random.default_rng(0).permutation([*truth.values()]), strict=True))
    assert abs(agreement(curated, lots) - 0.5) < 0.15  # the control: somebody else's taste
    bots = curated.card["users left out"]["likes everything"]["users"]
    assert bots >= SMALL.bots / 3  # the others saw too few pictures to be told from people


def test_the_card_accounts_for_every_picture():
    folder, _ = small_community()
    card = curation.curate_log(curation.read_log(folder / "log.csv"), folder, OF_SMALL).card
    remaining = card["log"]["items"]
    for step in card["items left out"]:
        assert remaining - step["items"] == step["left"]
        remaining = step["left"]
    assert (
        remaining
        == sum(s["items"] for s in card["splits"].values())
        == sum(t["items"] for t in card["topics"].values())
    )
    assert sum(t["pairs"] for t in card["topics"].values()) == sum(s["pairs"] for s in card["splits"].values())
    page = social.card_as_markdown(json.loads(json.dumps(card)))
    assert "near-duplicate" in page and f"| train | {card['splits']['train']['prompts']} |" in page


def test_the_same_community_is_simulated_again(tmp_path):
    folder, _ = small_community()
    second_log = community.write_community(SMALL, tmp_path)
    assert second_log.read_bytes() == (folder / "log.csv").read_bytes()
    with pytest.raises(BadInput, match="holds a community already"):
        social.simulate_community(tmp_path)


def test_the_taste_likes_what_it_says_and_prefers_the_prompt():
    def look(**changes):
        thing = dataclasses.replace(world.Thing("circle", "red", "large", 32, 32, 12), **changes)
        return rendering.render_scenes([(thing,)], torch.Generator().manual_seed(0))

    def taste(x, prompt="a circle"):
        return community.HiddenTaste()(media=Media(x, "image"), prompts=[prompt]).item()

    best = taste(look())
    assert best > taste(look(x=14, y=14)) and best > taste(look(r=8)) and best > taste(look(colour="white"))
    assert best > taste(look(colour="blue")) and best > taste(torch.nn.functional.avg_pool2d(look(), 5, 1, 2))
    assert best - taste(look(), "a square") == pytest.approx(0.25 * (1 - 1 / 2), abs=0.13)
    assert np.isnan(taste(look(), "a cat"))


def test_the_look_of_the_taste_is_smooth_in_the_pixels():
    x = rendering.render_scenes(
        [(world.Thing("cross", "blue", "large", 30, 30, 12),)], torch.Generator().manual_seed(0)
    )
    x = x.double().requires_grad_()
    for name, value in community.measure_style(x).items():
        (slope,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step = 1e-5 * towards
        change = (community.measure_style(x + step)[name] - community.measure_style(x - step)[name]).item() / 2
        assert change == pytest.approx((slope * step).sum().item(), rel=1e-3), name


def test_the_taste_is_a_judge_by_its_import_path():
    judge = build_reward("pipelines.starter.image.community:HiddenTaste")
    assert judge.spec.name == "hidden_taste" and not judge.spec.differentiable
