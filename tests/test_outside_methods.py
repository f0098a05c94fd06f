"""Methods from outside the tree: named by their import path wherever a method can be named, as rewards are."""

from __future__ import annotations

import json
import sys

import pytest
from training_toys import gaussian_policy

from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.engine import compare
from workbench.methods import METHODS, Reuse, find_method, name_of
from workbench.methods.common.method import MethodDefaults, complete_method, short_name
from workbench.runs import config
from workbench.tools import suites

PACKAGE = "outside_pkg"
WALK = f"{PACKAGE}.walk:Walk"
SOURCE = '''\
"""A random walk on the initial noise that keeps a step where the reward rises: a method of somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Count, Event, NonNegative, Policy, Reward


@dataclass(frozen=True)
class Walk:
    """A random walk on the noise, uphill."""

    steps: Count = 2  # tries
    length: NonNegative = 0.3  # of a step, in radians

    needs = frozenset({"latents", "reward"})
    scales = "steps"
    former_names = {"tries": "steps"}

    def calls(self, steps: int) -> int:
        return (1 + self.steps) * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            z = policy.noise(batch.seeds)
            media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
            r = reward(media=media, prompts=batch.prompts)
            for step in range(self.steps):
                yield self.event(step, media, r, z, batch)
                near = self.moved(z, step)
                tried = policy.sample(batch.prompts, seeds=batch.seeds, noise=near).media
                value = reward(media=tried, prompts=batch.prompts)
                if value.nanmean() > r.nanmean():
                    z, media, r = near, tried, value
            yield self.event(self.steps, media, r, z, batch, final=True)

    def moved(self, z: torch.Tensor, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        other = torch.randn(z.shape, generator=generator)
        angle = torch.tensor(self.length)
        return angle.cos() * z + angle.sin() * other.to(z)

    def event(self, step, media, r, z, batch, final=False) -> Event:
        metrics = {"reward": r.nanmean().item()}
        scores = {"reward": r}
        return Event(step, metrics, media, batch.prompts, batch.seeds, scores, z, final)


@dataclass(frozen=True)
class Push:
    """Trains, by nothing: a method that says no more of itself than it must."""

    needs = frozenset({"trainable", "latents", "reward"})

    def calls(self, steps: int) -> int:
        return steps

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=0.0)
        for k, batch in enumerate(batches):
            media = policy.sample(batch.prompts, seeds=batch.seeds).media
            yield Event(k, {"grad_norm": policy.update()}, media, batch.prompts, batch.seeds)


@dataclass(frozen=True)
class Silent:
    """Can't be called, and needs are missing."""

    def calls(self, steps: int) -> int:
        return steps


class Plain:
    """No dataclass."""
'''
ASKED = ["--reward", "starter_clip", "--prompts", "configs/prompts/starter-image-test.txt"]


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "walk.py").write_text(SOURCE)
    (folder / "broken.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def contestants_of(runs) -> dict[str, dict]:
    (summary,) = runs.glob("*/summary.json")
    return {c["name"]: c for c in json.loads(summary.read_text())["contestants"]}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (f"method: {{name: '{WALK}', steps: 3}}", {"Walk": 3}),
        (f"method: '{WALK}'", {"Walk": 2}),
        (
            f"contestants: {{base: sample, far: {{name: '{WALK}', length: 0.9}}, near: {{name: '{WALK}', tries: 1}}}}",
            {"far": 2, "near": 1},
        ),
    ],
    ids=["method", "bare", "contestants"],
)  # fmt: skip
def test_a_run_takes_a_method_by_its_import_path_and_goes_on_with_it(tmp_path, method, settings):
    file = tmp_path / "walk.yaml"
    file.write_text(
        "pipeline: starter-image\nreward: starter_clip\nprompts: configs/prompts/starter-image-test.txt\n"
        f"limit: 2\n{method}\n"
    )
    assert cli.main(["run", str(file), "--runs", str(tmp_path / "runs"), "--json"]) == 0
    made = contestants_of(tmp_path / "runs")
    assert {n: c["nfe"] for n, c in made.items() if n != "base"} == {n: 2 * (1 + k) for n, k in settings.items()}
    assert all(c["method"] == WALK for n, c in made.items() if n != "base")
    folder = next((tmp_path / "runs").glob("*/run.json")).parent
    (folder / "summary.json").unlink()
    assert cli.main(["run", str(folder), "--json"]) == 0 and contestants_of(tmp_path / "runs").keys() == made.keys()


def test_a_comparison_takes_one_too_and_brings_it_to_the_budget(tmp_path):
    text = f"{{'{WALK}': {{length: 0.5}}}}"
    args = ["compare", text, WALK, "--pipeline", "starter-image", "--calls", "6", "--limit", "2", *ASKED]
    assert cli.main([*args, "--runs", str(tmp_path / "runs"), "--json"]) == 0
    made = contestants_of(tmp_path / "runs")
    assert made["Walk"]["nfe"] == made["Walk-2"]["nfe"] == 2 * 6 and made["Walk"]["method"] == WALK
    folder = next((tmp_path / "runs").glob("*/run.json")).parent
    _, blocks = compare.contestant_blocks([str(folder)], None, None)
    assert blocks["Walk"] == {"name": WALK, "steps": 5, "length": 0.5}


def test_a_benchmark_takes_one_too():
    assert suites.parse_method(f"{{'{WALK}': {{steps: 1}}}}") == ("Walk", {"name": WALK, "steps": 1})


def test_a_stage_takes_one_too(tmp_path):
    stage = {"name": "one", "method": f"{PACKAGE}.walk:Push", "rounds": 1, "reward": "starter_clip"}
    values = {"pipeline": "starter-image", "prompts": ["a red circle", "a blue square"], "stages": [stage], "name": "s"}
    made = config.build_methods(
        config.check_config(build_dataclass(config.RunConfig, values | {"reward": "starter_clip"}, "s")), METHODS
    )
    assert name_of(made["staged"]) == f"{PACKAGE}.walk:Push" and made["staged"].group == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("renno", "unknown method 'renno'; did you mean 'reno'?"),
        ("nowhere_at_all:Walk", "can't import 'nowhere_at_all:Walk': No module named 'nowhere_at_all'"),
        (f"{PACKAGE}.broken:Walk", "can't import .* No module named 'a_module_that_nobody_has'"),
        (f"{PACKAGE}.walk:Wlak", "can't import .* has no attribute 'Wlak'"),
        (f"{PACKAGE}.walk:", "can't import"),
        (f"{PACKAGE}.walk:Plain", "is no method: it must be a frozen dataclass"),
        (f"{PACKAGE}.walk:torch", "is no method: it must be a frozen dataclass"),
        (f"{PACKAGE}.walk:Silent", "is no method: it lacks needs and __call__"),
    ],
)
def test_what_is_no_method_is_said_in_a_sentence(name, sentence):
    with pytest.raises(BadInput, match=f"^here: .*{sentence}"):
        find_method(name, where="here")


def test_what_a_method_leaves_out_has_its_default():
    cls = find_method(f"{PACKAGE}.walk:Push")
    assert cls is find_method(f"{PACKAGE}.walk:Push") is complete_method(cls)
    method = cls()
    assert (method.scales, method.group, method.optimizer_steps, method.sampler()) == ("", 1, 1, None)
    assert method.check(None, None, None) is None and not method.learns_from_pairs
    walk = find_method(WALK)(steps=4)
    assert (
        walk.scales == "steps" and name_of(walk) == WALK and short_name(WALK) == "Walk" and short_name("reno") == "reno"
    )


@pytest.mark.parametrize("name", METHODS)
def test_ours_say_all_that_the_driver_asks(name):
    assert issubclass(METHODS[name], MethodDefaults)
    assert name_of(METHODS[name]()) == name


OLD = {name: cls for name, cls in METHODS.items() if cls.former_names}


@pytest.mark.parametrize("name", OLD)
def test_old_names_of_settings_are_still_read(name, capsys):
    cls = OLD[name]
    fields = {f.name: f.default for f in cls.__dataclass_fields__.values() if f.init}
    assert set(cls.former_names.values()) <= set(fields) and not set(cls.former_names) & set(fields)
    values = {old: list(v) if isinstance(v := fields[new], tuple) else v for old, new in cls.former_names.items()}
    now = {new: values[old] for old, new in cls.former_names.items()}
    assert build_dataclass(cls, values, "method") == build_dataclass(cls, now, "method")
    for old, new in cls.former_names.items():
        with pytest.raises(BadInput, match=f"'{old}' and '{new}' are one setting"):
            build_dataclass(cls, {old: fields[new], new: fields[new]}, "method")


def test_noise_that_only_has_a_name_is_refused():
    from workbench.core.types import Batch

    with pytest.raises(BadInput, match="is only a name"):
        list(Reuse(noise="runs/x/reno")(gaussian_policy(), None, [Batch(("a",), (1,))]))
