"""Pipelines, rewards and methods that a caller gives as Python objects, under labels that a run's config can name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

import pipelines
from pipelines import Policy
from pipelines.fingerprint import fingerprint_network
from pipelines.seams import named_networks
from pipelines.user_pipeline import UserPipeline
from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.core.schema import build_dataclass, suggest_nearest
from workbench.core.types import Method, Reward, RewardSpec
from workbench.engine.function_reward import FunctionReward
from workbench.methods import METHODS, find_method, name_of
from workbench.methods.common.method import complete_method
from workbench.runs.registry import all_rewards


@dataclass
class UserObjects:
    """The objects that a caller passed, by label. `pipelines` holds their PipelineConfigs, `loaders` the functions that
    make policies of them."""

    pipelines: dict[str, pipelines.PipelineConfig] = field(default_factory=dict)
    loaders: dict[str, Callable[..., Policy]] = field(default_factory=dict)
    rewards: dict[str, Callable[[], Reward]] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    borrowed: list[UserPipeline] = field(default_factory=list)  # loaded pipelines, to be restored afterwards
    loaded: dict[str, Any] = field(default_factory=dict)  # label -> diffusers pipeline whose weights are in memory
    labels: dict[int, str] = field(default_factory=dict)  # id of a pipeline or reward that was passed -> its label

    # pipelines

    def name_pipeline(self, pipeline: Any) -> str:
        """The text by which a config names this pipeline: a name as it is, a label for a PipelineConfig, a Policy or a
        diffusers pipeline. Raises BadInput for anything else."""
        if isinstance(pipeline, (str, Path, Mapping)):
            return pipelines.pipeline_label(pipeline)
        if id(pipeline) in self.labels:
            return self.labels[id(pipeline)]
        if isinstance(pipeline, pipelines.PipelineConfig):
            config, loader = pipeline, pipelines.load
        elif isinstance(pipeline, Policy):
            config, loader = describe_policy(pipeline), lambda _, **where: reuse_policy(pipeline)
            if config.name == config.pipeline:  # made of a pipeline object, so it can't be loaded by name
                borrowed = UserPipeline(pipeline.pipe, modality=config.modality)
                borrowed.config = config
                self.borrowed.append(borrowed)
        else:
            borrowed = UserPipeline(pipeline)
            self.borrowed.append(borrowed)
            config, loader = borrowed.config, lambda _, **where: borrowed.as_policy(**where)
        label = free_label(Path(config.name).name or config.pipeline, self.pipelines)
        self.labels[id(pipeline)] = label
        self.pipelines[label], self.loaders[label] = config, loader
        if not isinstance(pipeline, pipelines.PipelineConfig):
            self.loaded[label] = getattr(pipeline, "pipe", pipeline)
        return label

    def read_pipeline(self, name: str) -> pipelines.PipelineConfig:
        """The config behind a label, or behind any other name of a pipeline. Raises BadInput."""
        return self.pipelines[name] if name in self.pipelines else pipelines.read_config(name)

    def check_pipeline(
        self, name: str, config: pipelines.PipelineConfig, *, device: str, dtype: str, attention: str
    ) -> tuple[torch.device, torch.dtype, str]:
        """Device, dtype and attention kernels that the pipeline will use (pipelines.plan_loading). Raises BadInput."""
        if name in self.pipelines and self.loaders[name] is not pipelines.load:
            policy = self.loaders[name](config, device=device, dtype=dtype, attention=attention)
            kind = next(
                (p.dtype for p in policy.pipe.components.values() if isinstance(p, torch.nn.Module)), torch.float32
            )
            return policy.device, kind, policy.attention
        return pipelines.plan_loading(config, device=device, dtype=dtype, attention=attention)

    def load(self, config: pipelines.PipelineConfig, **settings: Any) -> Policy:
        """The driver's replacement for pipelines.load: a loaded pipeline is used as it is."""
        label = next((n for n, c in self.pipelines.items() if c is config), None)
        loader = pipelines.load if label is None else self.loaders[label]
        return loader(config, **settings)

    def fingerprints(self) -> dict[str, str]:
        """Label -> what the weights of a loaded pipeline are, by which a run that goes on knows them again."""
        return {
            label: " ".join(f"{name}:{fingerprint_network(part)}" for name, part in named_networks(pipe).items())
            for label, pipe in self.loaded.items()
        }

    def restore(self) -> None:
        """Undo what policies have changed in loaded pipelines."""
        for user_pipeline in self.borrowed:
            user_pipeline.restore()

    def save_pipelines(self, folder: Path) -> dict[str, str]:
        """Write a YAML file for every pipeline, and the weights of loaded ones, so that the base of a training outlasts
        this process; returns label -> file. Equal weights are written once."""
        saved = {}
        for label, config in self.pipelines.items():
            if self.loaders[label] is not pipelines.load:
                borrowed = next((b for b in self.borrowed if b.config is config), None)
                if borrowed is not None:
                    weights_folder = folder / f"{label}-{weights_digest(borrowed.pipe)}"
                    if not (weights_folder / "model_index.json").is_file():
                        borrowed.save(weights_folder)
                    config = dataclasses.replace(
                        config, repo=str(weights_folder.resolve()), scheduler={}, components={}
                    )
            saved[label] = str(write_pipeline_config(config, folder, label))
        return saved

    # rewards

    def reward_registry(self) -> dict[str, Any]:
        """Name or label -> reward: all of the registry, and the caller's."""
        return {**all_rewards(), **self.rewards}

    def name_rewards(self, block: Any, where: str = "reward") -> Any:
        """A reward block for rewards.build_reward, with labels in place of callables. `block` is a name, a callable, a
        mapping {name or callable: weight or settings} or {name: callable}, or a list of names and callables. Raises
        BadInput."""
        if block is None or isinstance(block, str):
            return block
        if isinstance(block, Mapping):
            return dict(self._name_component(key, value, where) for key, value in block.items())
        if isinstance(block, Sequence):
            labels = [self._name_reward(part, where) for part in block]
            return labels if where == "watch" else dict.fromkeys(labels, 1.0)
        return self._name_reward(block, where)

    def _name_component(self, key: Any, value: Any, where: str) -> tuple[str, Any]:
        if not isinstance(key, str):
            return self._name_reward(key, where), value
        if is_reward(value):
            return self._name_reward(value, where, key), 1.0
        if isinstance(value, Mapping) and is_reward(value.get("reward")):
            return key, {**value, "reward": self._name_reward(value["reward"], where, key)}
        return key, value

    def _name_reward(self, reward: Any, where: str, label: str = "") -> str:
        if isinstance(reward, str):
            return reward
        if not is_reward(reward):
            raise BadInput(
                f"{where}: expected a reward's name, a callable (media, prompts) -> scores or a mapping, got "
                f"{reward!r:.60}"
            )
        if id(reward) in self.labels:
            return self.labels[id(reward)]
        spec = getattr(reward, "spec", None)
        name = label or (
            spec.name if isinstance(spec, RewardSpec) else getattr(reward, "__name__", type(reward).__name__)
        )
        label = free_label(name.replace("<lambda>", "lambda"), self.reward_registry())
        instance = reward if isinstance(spec, RewardSpec) else FunctionReward(reward, name=label)
        self.rewards[label] = reward if isinstance(reward, type) else lambda: instance
        self.labels[id(reward)] = label
        return label

    # methods

    def method_block(self, method: Any, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A contestant's block: {"name": ..., its settings}. `method` is a name, a mapping with a name, a Method or its
        class. Raises BadInput, naming the nearest method or setting."""
        settings = dict(settings or {})
        if isinstance(method, Mapping):
            settings = {**method, **settings}
            method = settings.pop("name", None)
        if isinstance(method, str):
            build_dataclass(find_method(method), settings, method)
            return {"name": method, **settings}
        cls = method if isinstance(method, type) else type(method)
        if not (dataclasses.is_dataclass(cls) and callable(method) and hasattr(cls, "needs")):
            raise BadInput(
                "method: expected a name or a Method, a frozen dataclass as docs/extending.md has it, got "
                f"{method!r:.60}"
            )
        complete_method(cls)
        if isinstance(method, type):
            instance = build_dataclass(cls, settings, cls.__name__)
        else:
            instance = dataclasses.replace(method, **check_settings(cls, settings))
        values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
        if is_importable(instance) and is_plain(values):
            return {"name": name_of(instance)} | values
        if same := next((n for n, other in self.methods.items() if other is instance), None):
            return {"name": same}
        label = free_label(cls.__name__.lower(), {*METHODS, *self.methods})
        self.methods[label] = instance
        return {"name": label}

    def method_registry(self) -> dict[str, Any]:
        """Name -> class of every method, and label -> instance of the caller's."""
        return {**METHODS, **self.methods}


def describe_policy(policy: Policy) -> pipelines.PipelineConfig:
    """The config of a Policy: the one that it was loaded by, else one made of its pipeline and settings."""
    if policy.config is not None:
        return policy.config
    steps = {"steps": policy.call["num_inference_steps"]} if "num_inference_steps" in policy.call else {}
    return UserPipeline(policy.pipe, modality=policy.modality, rate=policy.rate, **steps).config


def reuse_policy(policy: Policy) -> Policy:
    """The policy itself, without the stop event of an earlier run."""
    policy.stop = None
    return policy


def is_importable(method: Method) -> bool:
    """Whether another process can import the method's class."""
    name = name_of(method)
    try:
        return not name.startswith("__main__:") and find_method(name) is type(method)
    except BadInput:
        return False


def check_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings. Raises BadInput for one that the method's class doesn't have."""
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in settings:
        if key not in names:
            raise BadInput(f"{cls.__name__}: unknown key {key!r}; {suggest_nearest(str(key), names)}")
    return dict(settings)


def is_reward(value: Any) -> bool:
    """Whether it is a callable that may return scores, or a reward's class."""
    return callable(value) and not isinstance(value, str)


def is_plain(values: Any) -> bool:
    """Whether JSON can hold it."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def free_label(name: str, used: Any) -> str:
    """A label made of `name` that a config can name and that is not in `used`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "unnamed"
    return next(label for label in (name, *(f"{name}-{n}" for n in range(2, 1000))) if label not in used)


def weights_digest(pipe: Any) -> str:
    """Eight hex digits that change with the weights of a pipeline."""
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        for key, value in sorted(part.state_dict().items()) if isinstance(part, torch.nn.Module) else ():
            digest.update(f"{name}.{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def write_pipeline_config(config: pipelines.PipelineConfig, folder: Path, label: str) -> Path:
    """Write the config to a YAML file that commands can name, with a digest of its content in the file's name."""
    values = {"class" if k == "pipeline" else k: v for k, v in vars(config).items() if k != "name"}
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    values = {k: v for k, v in values.items() if v not in (defaults.get(k), {}, "")}
    text = yaml.safe_dump(values, sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    if not path.is_file():
        write_atomic(path, text)
    return path
