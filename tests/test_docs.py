"""README.md and docs/*.md name only what exists: files, functions, config keys, commands and their flags."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import PipelineConfig
from pipelines.starter import ORACLES
from rewards import REWARDS
from rewards.ensemble import COMBINATIONS
from rewards.factory import PRESETS
from rewards.transforms import SHAPES
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS, ROOT, STARTER
from workbench.core.schema import build_dataclass
from workbench.methods import METHODS, find_method
from workbench.runs import config
from workbench.runs.imported_media import ImportedMedia, is_imported
from workbench.runs.preference_data import PreferencePairs
from workbench.runs.stages import Stage
from workbench.runs.train_config import TrainConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("workbench", "rewards", "pipelines")
FOLDERS = (*PACKAGES, "configs", "tests", "benchmarks", "docs")
SUFFIXES = "py|yaml|txt|md|svg|png|html|css|js|jsonl|ipynb|mp4|flac"
# What a page tells its reader to write.
WRITTEN_BY_THE_READER = {
    "rewards/image/warmth.py",
    "my_pkg/walk.py",
    "my_pkg/warmth.py",
    "walk.yaml",
    "my-model.yaml",
    "my.yaml",
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def repository_files() -> set[str]:
    """Every file that git has or would have, as a path from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = answer.stdout.split("\n") if answer.returncode == 0 else map(str, relative_files())
    return {name for name in names if name and (ROOT / name).exists()}


def relative_files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*"))


FILES = repository_files()


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in one of the languages; "" is a block without one."""
    pattern = r"^```(\w*)\n(.*?)^```$"
    return [
        code for name, code in re.findall(pattern, page.read_text(encoding="utf-8"), re.M | re.S) if name in languages
    ]


def code_spans(page: Path) -> list[str]:
    """What stands between single backticks, in lines that are no code block."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


# Files


def is_file_named(name: str) -> bool:
    """Whether a path, or the end of one, is a file of the repository."""
    return name in FILES or any(file.endswith(f"/{name}") for file in FILES)


@every_page
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    below_a_folder = rf"(?<![\w/.:@-])(?:{'|'.join(FOLDERS)})/[\w./{{}},-]*\w"
    paths = set(re.findall(below_a_folder, text)) - WRITTEN_BY_THE_READER
    missing = {name for name in paths if not any(ROOT.glob(name))}
    spans = {span for span in code_spans(page) if re.fullmatch(r"[\w./-]+\.py", span)} - WRITTEN_BY_THE_READER
    missing |= {name for name in spans if not is_file_named(name)}
    weights = {span for span in code_spans(page) if span.startswith("weights/")}
    missing |= {name for name in weights if not (STARTER.parent / name).exists()}
    configs = {span.split()[-1] for span in code_spans(page) if re.fullmatch(r"workbench run [\w./-]+", span)}
    missing |= {name for name in configs if not (CONFIGS / "runs" / f"{name}.yaml").is_file() and name.islower()}
    assert not missing


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_files_in_the_drawing_of_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    names = re.findall(r"\b[a-z_]+\.py\b", text)
    assert len(names) > 10 and [name for name in names if not is_file_named(name)] == []


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name}" not in readme] == []


# Modules and functions


def resolve_name(dotted: str) -> Any:
    """The module or object that `package.module.name` stands for. Raises AttributeError or ImportError."""
    parts = re.split(r"[.:]", dotted)
    for n in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if n == 1 or not ".".join(parts[:n]).startswith(str(error.name)):
                raise
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise ImportError(dotted)


@every_page
def test_the_modules_and_functions_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    names = re.findall(rf"(?<![\w./@-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?::\w+)?", text)
    for name in set(names):
        is_file = name == "workbench.db" or name.rpartition(".")[2] in SUFFIXES.split("|")
        if not is_file and name.replace(".", "/") + ".py" not in WRITTEN_BY_THE_READER:
            resolve_name(name)


def imported_names(tree: ast.AST) -> dict[str, Any]:
    """What the imports of this project's modules bind in a block of code: name -> value."""
    bound: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            for alias in node.names:
                bound[alias.asname or alias.name] = resolve_name(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in PACKAGES:
                    bound[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(alias.name)
    return bound


@every_page
def test_the_python_of_a_page_imports_and_calls_what_exists(page):
    for code in blocks(page, "python", "py"):
        tree = ast.parse(code)
        bound = {"w": importlib.import_module("workbench")} | imported_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
                getattr(bound[node.value.id], node.attr)
            if isinstance(node, ast.Call):
                check_keywords(node, bound)
    for name in re.findall(r"`w\.(\w+)", page.read_text(encoding="utf-8")):
        assert hasattr(importlib.import_module("workbench"), name), name


def check_keywords(call: ast.Call, bound: dict[str, Any]) -> None:
    """That a function of the project takes the keywords that a page gives it."""
    function = call.func
    if isinstance(function, ast.Name):
        value = bound.get(function.id)
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        value = getattr(bound.get(function.value.id), function.attr, None)
    else:
        return
    if not inspect.isroutine(value) and not inspect.isclass(value):
        return
    parameters = inspect.signature(value).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        assert {k.arg for k in call.keywords if k.arg} <= set(parameters), ast.unparse(call)


# Configs

KEYS = {f.name for f in fields(config.RunConfig)}
PIPELINE_KEYS = {f.name for f in fields(PipelineConfig)} - {"pipeline"} | {"class"}


def documents(code: str) -> list[dict]:
    """The mappings that a YAML block shows. A key that stands several times begins another one: the block lists
    alternatives."""
    mappings: list[dict] = [{}]
    node = yaml.compose(code)
    assert isinstance(node, yaml.MappingNode), code
    for key_node, value_node in node.value:
        key = key_node.value
        value = yaml.safe_load(yaml.serialize(value_node))
        if key in mappings[-1]:
            mappings.append({})
        mappings[-1][key] = value
    return mappings


def check_method(value: Any, name: str | None = None) -> None:
    if is_imported(value):
        build_dataclass(ImportedMedia, value, "contestant")
        return
    settings = {"name": value} if isinstance(value, str) else dict(value or {})
    name = settings.pop("name", name)
    settings.pop("pipeline", None), settings.pop("lora", None)
    if ":" not in str(name):  # somebody's own
        cls = find_method(str(name))
        assert not set(settings) & set(getattr(cls, "former_names", {})), f"{name}: {settings}"
        build_dataclass(cls, settings, "method")


def check_reward(value: Any) -> None:
    """The names of rewards and of their settings; nothing is built, for most want a file or a server."""
    if isinstance(value, (str, list)):
        value = dict.fromkeys([value] if isinstance(value, str) else value, 1.0)
    for label, block in value.items():
        if label in ("shape", "combine"):
            how = block if isinstance(block, str) else block["how"]
            choices: dict[str, type] = {**SHAPES, **COMBINATIONS}
            settings = {} if isinstance(block, str) else {k: v for k, v in block.items() if k != "how"}
            build_dataclass(choices[how], settings, label)
            continue
        settings = dict(block) if isinstance(block, dict) else {}
        name = settings.pop("reward", label)
        settings.pop("weight", None), settings.pop("within", None)
        if isinstance(name, dict):
            check_reward(name)
        elif name not in PRESETS and ":" not in name and name not in {oracle.spec.name for oracle in ORACLES}:
            known = {f.name for f in fields(REWARDS[name])}
            assert set(settings) <= known, f"{label}: {set(settings) - known}"
            if "of" in settings:
                check_reward(settings["of"])


def check_run_keys(values: dict) -> None:
    """Every key of a part of a run's config, by its present name."""
    assert set(values) <= KEYS, set(values) - KEYS
    checks = {"train": TrainConfig, "pairs": PreferencePairs}
    for key, cls in checks.items():
        if key in values:
            assert not set(values[key]) & set(getattr(cls, "former_names", {})), values[key]
            known = {f.name for f in fields(cls)}
            assert set(values[key]) <= known, set(values[key]) - known
    if "method" in values:
        check_method(values["method"])
    for name, block in (values.get("contestants") or {}).items():
        check_method(block, name)
    for stage in values.get("stages") or []:
        build_dataclass(Stage, stage, "stage")
        assert not set(stage) & set(Stage.former_names), stage
    for key in ("reward", "watch"):
        if key in values:
            check_reward(values[key])


@every_page
def test_the_configs_of_a_page_have_present_keys(page):
    for code in blocks(page, "yaml"):
        for values in documents(code):
            if "class" in values:
                assert set(values) <= PIPELINE_KEYS, set(values) - PIPELINE_KEYS
            else:
                check_run_keys(values)


@every_page
def test_the_settings_in_the_sentences_of_a_page_exist(page):
    for span in code_spans(page):
        if re.match(rf"({'|'.join(KEYS)}): \S", span) and "…" not in span and "..." not in span:
            check_run_keys(yaml.safe_load(span.replace("RUN", "runs/x")))
        if setting := re.fullmatch(rf"train\.(?!{SUFFIXES})(\w+)(?:[=:].*)?", span):
            assert setting[1] in {f.name for f in fields(TrainConfig)}, span


def test_the_page_about_training_lists_every_setting_with_its_default():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("## The `train` block")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section, re.M)
    listed = {key: values for keys, values in rows for key in re.findall(r"`(\w+)`", keys)}
    names = {f.name for f in fields(TrainConfig)} - {"weight_decay", "betas"}  # in the row of `optimizer`
    assert set(listed) == names
    for keys, values in rows:
        settings = re.findall(r"`(\w+)`", keys)
        for key, text in zip(settings, values.split(", "), strict=False):
            default = next(f.default for f in fields(TrainConfig) if f.name == key)
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                assert float(text) == default, key


# Commands


def command_lines(page: Path) -> list[str]:
    """The commands of a page's blocks, each on one line, without what follows a `#` or a `|`."""
    text = "\n".join(blocks(page, "", "sh", "bash")).replace("\\\n", " ")
    return [re.split(r"\s(?:&&|\|)\s", line)[0] for line in text.splitlines()]


@every_page
def test_the_commands_of_a_page_are_understood(page, capsys):
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        if not words or Path(words[0]).name not in ("workbench", "accelerate"):
            continue
        arguments = words[1:] if words[0] != "accelerate" else words[words.index("workbench") + 1 :]
        try:
            args = cli.parse_arguments([word for word in arguments if word != "…"])
        except SystemExit:
            pytest.fail(f"{page.name}: {line}\n{capsys.readouterr().err}")
        if args.command == "run" and (CONFIGS / "runs" / f"{args.config}.yaml").is_file():
            config.build_methods(config.read_run_config(args.config, args.override), METHODS)
            assert "is called" not in capsys.readouterr().err, line  # a former name of a setting


def subparsers(parser) -> dict:
    return next((a.choices for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict)), {})


@every_page
def test_the_commands_in_the_sentences_of_a_page_exist(page):
    commands = subparsers(cli.build_parser())
    for span in code_spans(page):
        words = span.split()
        if words[0] != "workbench" or len(words) < 2:
            continue
        assert words[1] in commands, span
        nested = subparsers(commands[words[1]])
        parser = nested[words[2]] if nested and len(words) > 2 else commands[words[1]]
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, span


@every_page
def test_the_targets_and_scripts_of_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in [*command_lines(page), *code_spans(page)]:
        for target in re.findall(r"^make ([\w-]+)", line):
            assert re.search(rf"^{target}:", makefile, re.M), line
        if script := re.match(r"python ((?:benchmarks|tests)/\w+\.py)(.*)", line):
            source = (ROOT / script[1]).read_text(encoding="utf-8")
            assert [flag for flag in re.findall(r"--[\w-]+", script[2].split("#")[0]) if flag not in source] == [], line


def test_the_calls_of_the_app_that_its_page_lists_are_there():
    page = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", page.partition("lists all of them:")[2].partition(".")[0])
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "workbench" / "ui").rglob("*.py"))
    assert len(listed) > 15
    assert [name for name in listed if not re.search(rf'"{name}"|def {name}\(', source)] == []


def test_a_former_name_of_a_setting_would_be_found():
    """The control of the tests above."""
    with pytest.raises(AssertionError):
        check_run_keys({"train": {"updates": 3}})
    with pytest.raises(AssertionError):
        check_method({"name": "nft", "updates": 2})
    with pytest.raises(BadInput):
        check_method("ren")
    assert not is_file_named("no_such_file.py")
