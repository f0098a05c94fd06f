"""The claim of the demo and the controls that must fail: long, and so in a file of its own, which a worker begins
early."""

from __future__ import annotations

from test_run import execute


def test_reno_raises_the_oracle_and_each_control_does_not(tmp_path):
    """The claim, with controls that must fail: the opposite reward lowers the oracle, other prompts' reward does not
    raise it."""
    gain = {}
    for control in ("none", "negated", "shuffled"):
        folder = execute(
            tmp_path, method={"name": "reno", "iterations": 5}, limit=28, seeds=2, batch=28, control=control
        )
        gain[control] = folder.read("summary.json")["contestants"][1]["versus_base"]["oracle"]["ci95"]
    assert gain["none"][0] > 0, gain
    assert gain["negated"][1] < 0, gain
    assert gain["shuffled"][0] <= 0, gain
