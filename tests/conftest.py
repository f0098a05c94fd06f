"""Every test runs offline and on the CPU; what can't is marked `gpu` or `weights` and skipped with a reason."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core: more threads than cores wait for one another
_CACHE = tempfile.TemporaryDirectory(prefix="workbench-tests-")
os.environ["WORKBENCH_CACHE"] = _CACHE.name  # embedded references: never the user's own

import pytest  # noqa: E402
import torch  # noqa: E402

_FROZEN = [0]  # modules that were imported when objects were last frozen
# files that take longest: begun first, or one worker works on one of them long after the others are done
LONG = (
    "test_browser",
    "test_browser_inputs",
    "test_sharding",
    "test_train_processes",
    "test_devices",
    "test_run",
    "test_train_kinds",
    "test_seams",
    "test_methods_on_models",
    "test_train_run",
    "test_controls",
    "test_starter_video",
    "test_starter_music",
    "test_train_guards",
    "test_reward_to_noise",
    "test_seam_check",
    "test_ui_runs",
    "test_adapters",
    "test_starter_world",
    "test_api",
    "test_app",
    "test_lora_start",
    "test_training_models",
    "test_training_policy",
    "test_export_memory",
)


def pytest_addoption(parser):
    parser.addoption(
        "--reward",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="a reward from outside the tree, to be held to the contract of tests/test_rewards.py",
    )


def pytest_configure(config):
    for path in config.getoption("--reward"):
        from rewards.registry import REWARDS, find_reward

        reward = find_reward(path, where="--reward")
        REWARDS[reward.spec.name] = reward


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none here"))
        if (marker := item.get_closest_marker("weights")) and not os.path.isdir(
            os.environ.get("WORKBENCH_WEIGHTS", "")
        ):
            item.add_marker(
                pytest.mark.skip(
                    reason=f"needs published weights: set WORKBENCH_WEIGHTS to a folder with {marker.args}"
                )
            )


def pytest_collection_finish():
    freeze_imports()
    gc.set_threshold(50_000, 20, 50)  # and those that nobody asks for are a twentieth of the time


def pytest_runtest_logfinish():
    if len(sys.modules) > _FROZEN[0] + 200:  # libraries import most of their modules when these are first used
        gc.collect()
        freeze_imports()


def freeze_imports():
    """What is imported stays: the collections that runs ask for needn't look through it again."""
    gc.freeze()
    _FROZEN[0] = len(sys.modules)


def pytest_sessionfinish():
    gc.unfreeze()  # or what is destroyed at the end is said to leak


@pytest.fixture(scope="session")
def launcher():
    """Starts processes that needn't import anything: see forked.py."""
    from forked import Launcher

    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture
def serve(monkeypatch):
    """Starts servers and stops them; every test begins with an empty temporary cache."""
    from judge_server import JudgeServer

    from rewards.vlm import judge_client

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for cached in (judge_client.shared_client, judge_client.open_store, judge_client._temporary_folder):
        cached.cache_clear()
    servers = []

    def start(*args, **kwargs):
        servers.append(JudgeServer(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def pipe():
    """A tiny Stable Diffusion."""
    import tiny

    return tiny.build("StableDiffusionPipeline")


@pytest.fixture
def encodings(pipe):
    """How often the text encoder of `pipe` really ran, as a list that grows."""
    ran = []
    handle = pipe.text_encoder.register_forward_hook(lambda *_: ran.append(1))
    yield ran
    handle.remove()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. A processor draws what a page paints by WebGL, such as the canvas of a mask."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs a Chromium, to drive it")
    arguments = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()
