"""`workbench learn`: a file of votes becomes a reward, or an honest answer why not yet."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_fixtures import small_settings

from rewards import build
from workbench.core.errors import BadInput
from workbench.core.types import Media
from workbench.feedback import learn

CLIP = "clip"


def encoder() -> str:
    return small_settings(CLIP)["model"]


def voted(path: Path, n: int, *, seed: int = 0, by_lot: bool = False, voters: dict[str, float] | None = None) -> Path:
    """n votes on features of the small encoder's width: each voter likes the first axis, so many times, or votes by
    lot."""
    g = torch.Generator().manual_seed(seed)
    tastes, rows = [*(voters or {"": 8.0}).items()], []
    for k in range(n):
        a, b = torch.nn.functional.normalize(torch.randn(2, 32, generator=g), dim=1)
        voter, strength = tastes[k % len(tastes)]
        chance = 0.5 if by_lot else (strength * 4 * (a - b)[0]).sigmoid().item()
        winner = "a" if torch.rand((), generator=g).item() < chance else "b"
        row = {"prompt": f"prompt {k % 20}", "a_features": a.tolist(), "b_features": b.tolist(), "winner": winner}
        rows.append(row | ({"voter": voter} if voter else {}))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_taste_in_votes_becomes_a_reward_that_runs_accept(tmp_path):
    file = voted(tmp_path / "votes.jsonl", 300)
    more = {"prompt": "x", "a_features": [1.0] * 32, "b_features": [math.nan] * 32, "winner": "a"}
    file.write_text(file.read_text() + json.dumps(more) + "\n")
    result = learn.learn_from_votes(file, tmp_path / "taste", encoder())
    assert result["better"] and result["told"][0].startswith("better than chance: right on ")
    assert result["told"][1] == "besides, 0 ties, and 1 votes whose features are not finite"
    assert result["told"][2].startswith("control, the same votes dealt out to other pairs: not")
    assert not result["control"]["low"] > 0.5
    report = result["report"]
    assert 0.5 < report["low"] < report["accuracy"] < report["high"] and report["votes"] == 300
    assert json.loads(json.dumps(result)) == result
    ((name, settings),) = result["reward"].items()
    reward = build(name, **settings)
    reward.check()
    assert reward(media=Media(torch.rand(2, 3, 40, 40), "image"), prompts=["", ""]).isfinite().all()


def test_votes_by_lot_are_kept_as_a_reward_but_said_to_prove_nothing(tmp_path):
    """The control: the same number of votes without a taste."""
    result = learn.learn_from_votes(voted(tmp_path / "votes.jsonl", 300, by_lot=True), tmp_path / "taste", encoder())
    assert not result["better"] and result["report"]["low"] <= 0.5
    assert result["told"][0].startswith(("not enough votes yet", "not better than chance"))
    assert result["told"][-1] == "a run refuses it as it is, unless its block says `unproven: true`"
    with pytest.raises(BadInput, match="vote more"):
        build("learned", **result["reward"]["learned"]).check()
    build("learned", **result["reward"]["learned"], unproven=True).check()


def test_a_handful_of_votes_is_not_enough_and_nothing_is_written(tmp_path):
    with pytest.raises(BadInput, match="not enough votes yet: 6 without a tie on 6 prompts; .*about [0-9]+ to show"):
        learn.learn_from_votes(voted(tmp_path / "votes.jsonl", 6), tmp_path / "taste", encoder())
    assert not (tmp_path / "taste").exists()


def test_opposite_tastes_become_a_mixture_in_which_everybody_has_a_reward(tmp_path):
    people = {"ada": 8.0, "bob": 8.0, "eve": -8.0, "jim": -8.0}
    file = voted(tmp_path / "votes.jsonl", 320, voters=people)
    result = learn.learn_from_votes(file, tmp_path / "tastes", encoder(), mixture=True, prototypes=2)
    assert result["better"] and not result["shared"]["low"] > 0.5 and result["people"] == sorted(people)
    assert result["told"][1].startswith("one taste for all, on the same votes: ")
    path = result["reward"]["personal"]["path"]
    ada, eve = (build("personal", path=path, person=p).weights for p in ("ada", "eve"))
    assert ada[0] > 0.2 and eve[0] < -0.2, "the axis that they disagree about"
    with pytest.raises(BadInput, match="number of voters, 1, got 3"):
        learn.learn_from_votes(voted(tmp_path / "one.jsonl", 60), tmp_path / "none", encoder(), mixture=True)


def test_pictures_are_voted_on_as_they_look_and_fitted(tmp_path):
    """White wins over dark, where the white ones are transparent black, which shows as white."""
    rows = []
    for k in range(40):
        dark, clear = 10 + 4 * k, tmp_path / f"clear{k}.png"
        Image.new("RGB", (32, 32), (dark, dark, 0)).save(tmp_path / f"dark{k}.png")
        Image.new("LA", (32, 32), (0, 0)).save(clear)
        sides = {"a_path": f"dark{k}.png", "b_path": clear.name, "winner": "b"}
        if k % 2:
            sides = {"a_path": clear.name, "b_path": f"dark{k}.png", "winner": "a"}
        rows.append({"prompt": f"prompt {k}"} | sides)
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = learn.learn_from_votes(tmp_path / "votes.jsonl", tmp_path / "taste", encoder())
    assert result["better"] and result["report"]["accuracy"] == 1.0
    reward = build("learned", **result["reward"]["learned"])
    white, dark = torch.ones(3, 32, 32), torch.tensor([0.2, 0.2, 0.0]).view(3, 1, 1).expand(3, 32, 32)
    scores = reward(media=Media(torch.stack([white, dark]), "image"), prompts=["", ""])
    assert scores[0] > scores[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder": "starter:image/clipp"}, "no part 'starter:image/clipp'"),
        ({"encoder": "starter:image/clip"}, r"features of 32 numbers, where .* gives \d+; name .* with --encoder"),
        ({"file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"out": "votes.jsonl"}, "is a file; name a folder"),
    ],
)
def test_what_can_not_be_learned_from_is_one_sentence(tmp_path, change, says):
    voted(tmp_path / "votes.jsonl", 20)
    arguments = {"file": "votes.jsonl", "out": "taste", "encoder": encoder()} | change
    with pytest.raises(BadInput, match=says):
        learn.learn_from_votes(tmp_path / arguments["file"], tmp_path / arguments["out"], arguments["encoder"])
