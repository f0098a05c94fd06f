"""Trackers of a training: TensorBoard for real, wandb and trackio as what they are told."""

from __future__ import annotations

import sys
import types

import pytest

from workbench.runs.train_config import TrainConfig
from workbench.training.trackers import log_metrics, open_trackers


def opened(folder, *names, start=0):
    return open_trackers(TrainConfig(report_to=names), folder, "nft", {"seed": 3}, start)


def test_tensorboards_curves_of_a_resumed_training_forget_what_was_logged_beyond_its_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, rewards in ((0, (0.1, 0.2, 0.3)), (2, (0.7, 0.8))):
        trackers = opened(tmp_path, "tensorboard", start=start)
        for step, value in enumerate(rewards, start + 1):
            log_metrics(trackers, step, {"held oracle": value, "reward": value})
        for tracker in trackers:
            tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "nft"))
    events.Reload()
    curve = [(e.step, round(e.value, 3)) for e in events.Scalars("held/oracle")]
    assert curve == [(1, 0.1), (2, 0.2), (3, 0.7), (4, 0.8)]
    assert len(events.Scalars("reward")) == 4


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_the_run_its_config_and_its_numbers(tmp_path, monkeypatch, name):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    service = types.ModuleType(name)
    service.init = lambda **settings: calls.append(settings) or run
    monkeypatch.setitem(sys.modules, name, service)
    (tracker,) = opened(tmp_path / "20260101-nft", name)
    log_metrics([tracker], 4, {"held oracle": 0.5})
    tracker.finish()
    settings, *others = calls
    assert settings["project"] == "media-alignment-workbench" and settings["name"] == "20260101-nft-nft"
    assert settings["config"] == {"seed": 3} and others == [(4, {"held oracle": 0.5}), "finished"]
    if name == "wandb":
        assert settings["id"] == "20260101-nft-nft" and settings["resume"] == "allow"


def test_no_tracker_is_opened_where_none_is_asked_for(tmp_path):
    assert opened(tmp_path) == []
