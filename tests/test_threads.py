"""How many threads a starter works with: as many as bring something, as many as the run began with, or the user's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workbench import cli
from workbench.engine import threads
from workbench.tools import doctor

IDLE, BUSY = {1: 1.0, 2: 0.7}, {1: 1.0, 2: 1.5}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """As on a machine of two cores where nobody chose a number."""
    count = torch.get_num_threads()
    for name in threads.CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize(("seconds", "count"), [(IDLE, 2), (BUSY, 1), ({1: 1.0, 2: 0.95}, 1)])
def test_a_starter_works_with_one_thread_where_two_bring_nothing(seconds, count):
    note = threads.choose_threads(True, measure=lambda counts: seconds)
    assert torch.get_num_threads() == count
    assert bool(note) == (count == 1) and ("OMP_NUM_THREADS" in note) == bool(note)


def test_a_run_that_goes_on_works_with_the_number_that_it_began_with():
    """The last digits depend on it: nothing is measured, whatever the machine does now."""
    for recorded in (1, 2):
        torch.set_num_threads(2)
        threads.choose_threads(True, recorded, measure=None)
        assert torch.get_num_threads() == recorded
    for damaged in ("two", -1, 10**9, True, [1]):
        threads.choose_threads(True, damaged, measure=lambda counts: IDLE)
        assert torch.get_num_threads() == 2


def test_nothing_is_chosen_for_larger_models_nor_where_the_user_did(monkeypatch):
    def never(counts):
        raise AssertionError("nothing is to be measured")

    assert threads.choose_threads(False, measure=never) == "" and torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose_threads(True, 1, measure=never) == "" and torch.get_num_threads() == 2
    assert list(doctor.check_threads(None)) == [("threads", "ok", "2, as OMP_NUM_THREADS says")]


def test_it_is_measured_with_each_number_in_turn_and_draws_nothing():
    state = torch.get_rng_state()
    seconds = threads.time_in_turn((1, 2))
    assert set(seconds) == {1, 2} and all(0 < s < 10 for s in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_only_starters_on_the_cpu_are_tiny():
    def is_tiny(repo: str, device: str) -> bool:
        pipelines = {"base": SimpleNamespace(repo="starter:image/student"), "other": SimpleNamespace(repo=repo)}
        return threads.works_on_starters(SimpleNamespace(config=SimpleNamespace(device=device), pipelines=pipelines))

    assert is_tiny("starter:music/base", "cpu") and is_tiny("starter:music/base", "auto") != torch.cuda.is_available()
    assert not is_tiny("stabilityai/sd-turbo", "cpu") and not is_tiny("starter:music/base", "cuda")


def test_a_run_says_and_records_its_threads_and_keeps_them_when_it_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(threads, "time_in_turn", lambda counts: BUSY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "{pipeline: starter-image, method: sample, reward: brightness, prompts: [a red circle], name: run}"
    )
    assert cli.main(["run", "run.yaml"]) == 0
    assert "one thread: beside what else works on this machine" in capsys.readouterr().err
    (record,) = tmp_path.glob("runs/*/run.json")
    assert '"threads": 1' in record.read_text()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "time_in_turn", lambda counts: IDLE)
    assert cli.main(["run", str(record.parent)]) == 0
    assert torch.get_num_threads() == 1 and "as this run began with" in capsys.readouterr().err
