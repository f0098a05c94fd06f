"""When a training that is asked for more rounds goes on in its own run; that it does so is in test_train_run.py."""

from __future__ import annotations

import dataclasses

import pytest
from train_fixtures import planned

from workbench import cli
from workbench.core.errors import BadInput
from workbench.engine import extension
from workbench.runs import store


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("longer")


def begun(home, runs, trained, ended="", **train):
    """The folder of a run that is recorded as done, and its plan; `trained` rounds by its newest checkpoint."""
    plan = planned(home, train=train)
    folder = store.RunFolder.open(runs, "test", dataclasses.asdict(plan.config))
    folder.write("run.json", extension.describe_run(plan) | {"status": "done"})
    shelf = extension.checkpoint_store(plan, folder, "nft")
    shelf.save(trained, {"number": trained})
    shelf.mark_finished({"ended": ended})
    return folder, plan


def test_a_run_is_found_only_where_nothing_but_rounds_has_grown(home, tmp_path, capsys):
    folder, _ = begun(home, tmp_path, 4, rounds=4)
    open_run = lambda fresh=False, **train: extension.open_run(planned(home, train=train), tmp_path, fresh)  # noqa: E731
    others = [open_run(rounds=2), open_run(rounds=8, ema=0.5), open_run(fresh=True, rounds=8)]
    assert folder.path not in others
    assert cli.main(["run", str(folder.path), "batch=2"]) == 2 and "but for train.rounds" in capsys.readouterr().err
    assert extension.open_run(planned(home, train={"rounds": 6}), tmp_path, folder=folder.path) == folder.path
    assert open_run(rounds=8) == folder.path
    assert not extension.checkpoint_store(planned(home), folder, "nft").finished_record


@pytest.mark.parametrize(
    ("trained", "ended", "train", "sentence"),
    [
        (4, "", {"rounds": 4, "decay": 0.5}, "train.decay: the learning rate of nft has fallen towards the end of 4"),
        (2, "the 1 minutes were over", {"rounds": 4}, "nft did not end for want of rounds: the 1 minutes were over"),
        (2, "", {"rounds": 4, "decay": 0.5}, ""),  # stopped before it fell
        (4, "", {"rounds": 4, "warmup": 2}, ""),
    ],
)
def test_what_more_rounds_would_change_or_not_help_is_said_and_the_run_stays(
    home, tmp_path, trained, ended, train, sentence
):
    folder, _ = begun(home, tmp_path, trained, ended, **train)
    before = folder.read()
    longer = planned(home, train=train | {"rounds": 8})
    if sentence:
        with pytest.raises(BadInput, match=sentence):
            extension.open_run(longer, tmp_path)
        assert folder.read() == before and extension.checkpoint_store(longer, folder, "nft").finished_record
    else:
        assert extension.open_run(longer, tmp_path) == folder.path
