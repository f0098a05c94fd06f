"""How media is judged: small classes whose fields are their settings and whose docstring is their help.

Their `spec` can be read without loading anything; weights load on first use, onto the device of the media.

    from rewards import build, build_reward

    build("clip", model="openai/clip-vit-base-patch32")         # one reward by its name and settings
    build_reward({"clip": 1.0, "aesthetic": {"weight": 0.2}})   # several as one, as a config's `reward` names them
"""

from rewards.factory import build, build_reward, configure_reward
from rewards.registry import REWARDS, find_reward, release_weights

__all__ = ["REWARDS", "build", "build_reward", "configure_reward", "find_reward", "release_weights"]
