"""Weights in shards: two processes, each with half of what is trained, come to the model that one process would.

This file is also a script, `python tests/test_sharding.py FOLDER`: it imports once and forks the processes of each
launch, with the environment that `accelerate launch` gives them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked import fork, wait

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("StableDiffusion3Pipeline", "StableDiffusionPipeline")  # a transformer, a U-Net
PROMPTS, SEEDS = ("a red cat", "two dogs", "a red cat"), (11, 12, 13)  # three rows for two processes
LEVEL = {"block_out_channels": (8,), "norm_num_groups": 4, "mid_block_type": None} | {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
FREE = {"guidance_scale": 1.0}
METHODS = {NAMES[0]: {"name": "nft", "group": 2, "levels_per_sample": 1, "old_decay_slope": 0.2, "lr": 1e-3}} | {
    NAMES[1]: {"name": "draft", "grad_steps": 2, "lr": 1e-3}
}
TRAIN = {
    "rounds": 2,
    "prompts_per_round": 3,
    "eval_prompts": 1,
    "eval_every": 0,
    "save_every": 1,
    "best": "last",
    "ema": 0.5,
    "micro": 2,
    "report_to": [],
}


def build(name: str):
    """A tiny pipeline with several blocks, but of the U-Net a level less: each block is a message between processes."""
    import diffusers
    import tiny

    pipe = tiny.build(name)
    part, some_rows = ("unet", LEVEL) if name == NAMES[1] else ("transformer", {"num_layers": 3})
    old = getattr(pipe, part)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        new = getattr(diffusers, type(old).__name__)(**{**old.config, **some_rows}).eval().requires_grad_(False)
        tiny.randomise(new)
    setattr(pipe, part, new)
    return pipe


def asked(folder: Path, shard: bool) -> Path:
    """A run that trains both pipelines: one by NFT, which keeps an older copy, one by reward gradients."""
    import tiny

    messages = {"base": {"name": "sample", "pipeline": str(folder / f"{NAMES[0]}.yaml")}}
    for name in NAMES:
        spec, place = tiny.TINY[name], folder / f"{name}.yaml"
        config = {"class": name, "repo": str(folder / name), "steps": 2, "call": spec.call | FREE}
        place.write_text(yaml.safe_dump(config))
        messages[METHODS[name]["name"]] = {"pipeline": str(place)} | METHODS[name]
    config = {"contestants": messages, "pipeline": str(folder / f"{NAMES[0]}.yaml"), "reward": "contrast", "batch": 2}
    config |= {"prompts": ["a cat", "a dog", "a cow"], "test": ["a bird"]}
    config |= {"train": TRAIN | {"lora": {"targets": "weights"}, "shard": shard}}
    path = folder / f"{'shards' if shard else 'alone'}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# --- the script: processes -------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Two launches: undisturbed, and killed in the middle and begun again."""
    from workbench import cli, commands  # noqa: F401
    from workbench.engine import run  # noqa: F401

    for name in NAMES:
        build(name).save_pretrained(folder / name, safe_serialization=True)
    single, shards = asked(folder, False), asked(folder, True)

    def launch(path: Path, runs: str, processes: int) -> list[int]:
        return fork(lambda: cli.main(["run", str(path), "--runs", str(folder / runs)]), folder / runs, processes)

    figures = fork(lambda: figure(folder), folder / "figures", 2)
    codes = {
        "figures": wait(figures),
        "alone": wait(launch(single, "alone", 1)),
        "calm": wait(launch(shards, "calm", 2)),
    }
    repeated = launch(shards, "killed", 2)
    while count_rounds(folder / "killed") < 3 and os.waitpid(repeated[0], os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    for pid in repeated:
        os.kill(pid, signal.SIGKILL)
    codes |= {"killed": wait(repeated), "resumed": wait(launch(shards, "killed", 2))}
    (folder / "codes.json").write_text(json.dumps(codes))


def count_rounds(runs: Path) -> int:
    """Rounds of training in the log; four in all, two of each pipeline."""
    return sum(len(re.findall(r'"phase": ?"train"', p.read_text())) for p in runs.glob("*/events.jsonl"))


def figure(folder: Path) -> None:
    """What one process of two holds, and what it learns, of each pipeline: a file each."""
    torch.set_num_threads(1)
    for name in NAMES:
        results = taught(name, shard=True)
        torch.save(results, folder / f"{name}-{os.environ['RANK']}.pt")
    torch.save(said(shard=True), folder / f"half-{os.environ['RANK']}.pt")


def said(shard: bool) -> dict:
    """What a pipeline in bfloat16 predicts, and the dtypes of what is trained."""
    from tiny_trained import trainable

    from pipelines import Lora

    lora = Lora(targets="weights") if shard else Lora()
    policy = trainable(NAMES[0], build(NAMES[0]).to(torch.bfloat16), lora=lora, shard=shard)
    with torch.no_grad():
        path = policy.sample(PROMPTS[:1], seeds=SEEDS[:1])
        x0 = policy.predict(path.x[:, 1], 1, PROMPTS[:1]).x0
    return {"x0": x0, "x": path.x, "dtypes": sorted({str(p.dtype) for p in policy.adapters.parameters})}


def taught(name: str, shard: bool, **changes) -> dict:
    """Two updates of a policy in which everything occurs that differs where weights are sharded."""
    import tiny
    from tiny_trained import trainable
    from torch.distributed.tensor import DTensor

    from pipelines import DistributedPolicy, Lora, sharding

    policy = trainable(
        name,
        build(name),
        lora=Lora(targets="weights"),
        shard=shard,
        ema=0.5,
        steps=2,
        call=FREE | tiny.SQUARE,
        text={},
        **changes,
    )
    rows, modules = DistributedPolicy(policy, micro=1), list(policy.adapters.denoisers.values())
    rows.optimizer(1e-3)
    maximum, norms = [0], []

    def measured(*_) -> None:
        maximum[0] = max(
            maximum[0], sum(p.nbytes for m in modules for p in m.parameters() if not isinstance(p, DTensor))
        )

    if policy.sharded:
        for part in (part for m in modules for part in m.modules() if hasattr(part, "unshard")):
            part.register_forward_pre_hook(measured), part.register_forward_hook(measured)
    x = torch.randn(3, *policy.structure.state.shape[1:], generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        live = rows.predict(x, 1, PROMPTS).x0  # its graph is kept while other weights are swapped in
        with torch.no_grad(), rows.reference():
            before = rows.predict(x, 1, PROMPTS).x0
        rows.follow("old", 0.5)
        with torch.no_grad(), rows.use("old"):
            older = rows.predict(x, 1, PROMPTS).x0
        rows.backward((live - 0.5 * before - 0.4 * older).square().mean())
        rows.backward(rows.sample(PROMPTS, seeds=SEEDS, grad=2).media.data.square().mean())
        norms.append(rows.update())
    bytes_held = {key: _bytes(tree) for key, tree in _held(policy).items()}
    messages = {
        "norms": norms,
        "distance": policy.adapters.distance_from_base(),
        "finite": sharding.all_finite(policy.adapters.parameters),
        "nfe": policy.nfe,
    }
    state = policy.state_dict()
    return messages | {
        "held": bytes_held,
        "whole": maximum[0],
        "adapters": state["adapters"],
        "optimizer": state["optimizer"],
    }


def _held(policy) -> dict:
    return {
        "parameters": policy.adapters.parameters,
        "optimiser": [v for s in policy._optimizer.state.values() for k, v in s.items() if k != "step"],
        "copies": [v for values in policy.adapters.copies.values() for v in values.values()],
    }


def _bytes(tensors) -> int:
    return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    exported = subprocess.run(
        [sys.executable, __file__, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    logs = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(folder.glob("*.log")))
    assert exported.returncode == 0, exported.stderr + logs
    codes = json.loads((folder / "codes.json").read_text())
    assert codes.pop("killed") == [-9, -9], logs
    assert all(set(c) == {0} for c in codes.values()), f"{codes}\n{logs}"
    return folder


def exported(runs: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = runs.glob("*/export/*/merged/*/*.safetensors")
    return {f"{f.parts[-4]} {key}": value for f in files for key, value in load_file(f).items()}


def told(runs: Path) -> list[dict]:
    events = [json.loads(line) for path in runs.glob("*/events.jsonl") for line in path.read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "cost"} for e in events]


@pytest.mark.parametrize("name", NAMES)
def test_a_process_of_two_holds_half_and_learns_what_one_would(outputs, name):
    first, second = (torch.load(outputs / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    single = taught(name, shard=True)  # one process: nothing is sharded
    for key in ("parameters", "optimiser", "copies"):
        shares = [rank["held"][key] / single["held"][key] for rank in (first, second)]
        messages = (
            f"{key}: {first['held'][key]:,} and {second['held'][key]:,} bytes, of {single['held'][key]:,} unsharded"
        )
        print(messages)
        assert sum(shares) == pytest.approx(1.0) and all(0.4 < share < 0.6 for share in shares), messages
    weights = single["held"]["parameters"]
    assert 0 < first["whole"] < 0.7 * weights, f"at most {first['whole']:,} bytes of weights were whole, of {weights:,}"
    assert first["norms"] == second["norms"] == pytest.approx(single["norms"], rel=1e-4)
    assert first["distance"] == second["distance"] == pytest.approx(single["distance"], rel=1e-3) and first["finite"]
    assert first["nfe"] == second["nfe"], "both ran the denoiser for as many rows, or they would have waited for ever"
    assert first["adapters"].keys() == single["adapters"].keys() == {"train", "old", "ema"}
    for copy, values in single["adapters"].items():
        assert all(torch.allclose(first["adapters"][copy][k], v, atol=1e-4) for k, v in values.items()), copy
    for n, state in single["optimizer"]["state"].items():
        assert all(torch.allclose(first["optimizer"]["state"][n][k], v, atol=1e-3) for k, v in state.items())
    assert all(v is None for v in second["adapters"]["train"].values()), "only the first process puts weights together"


def test_a_pipeline_in_half_precision_computes_in_it_and_keeps_its_shards_in_full(outputs):
    ours, single = torch.load(outputs / "half-0.pt", weights_only=True), said(shard=False)
    assert ours["dtypes"] == ["torch.float32"] and ours["x"].dtype == single["x"].dtype == torch.bfloat16
    assert torch.equal(ours["x"], single["x"]) and torch.equal(ours["x0"], single["x0"])


def test_a_sharded_run_comes_to_the_weights_of_an_unsharded_one(outputs):
    ours, theirs = exported(outputs / "calm"), exported(outputs / "alone")
    assert ours.keys() == theirs.keys() and {key.split()[0] for key in ours} == {"nft", "draft"}
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, atol=1e-4), f"{key}: {float((ours[key] - value).abs().max())}"
    for local_weights, its in zip(told(outputs / "calm"), told(outputs / "alone"), strict=True):
        if local_weights.get("phase") in ("train", "watch"):
            assert local_weights["metrics"] == pytest.approx(its["metrics"], rel=1e-3, abs=1e-3)


def test_both_killed_and_begun_again_end_with_the_bits_of_an_undisturbed_run(outputs):
    ours, theirs = exported(outputs / "killed"), exported(outputs / "calm")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert told(outputs / "killed") == told(outputs / "calm")


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"lora": {"rank": 4}}, "only weights that are trained themselves are sharded"),
        ({"lora": {"targets": "weights"}, "optimizer": "adamw8bit"}, "the state of adamw8bit can't be sharded"),
    ],
)
def test_what_can_not_be_sharded_is_refused_in_one_sentence(block, says):
    from workbench.core.errors import BadInput
    from workbench.runs import train_config

    with pytest.raises(BadInput, match=says):
        train_config.read_train_config({"shard": True, **block}, {}, [], [])


def test_the_plan_says_how_many_processes_share_the_weights_or_that_none_do(monkeypatch):
    from workbench.runs import train_config

    requested = train_config.read_train_config({"shard": True, "lora": {"targets": "weights"}}, {}, [], [])
    assert "nothing is sharded: this is one process" in train_config.describe_training(requested, ["a"], True, ["b"])[0]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "in shards over 4 processes" in train_config.describe_training(requested, ["a"], True, ["b"])[0]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]))
