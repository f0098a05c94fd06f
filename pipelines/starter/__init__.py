"""The embedded pack: a procedural world, an oracle that reads it back exactly, and small models trained on it."""

from pipelines.starter.edit.oracle import EditDone, EditGround, EditKept, EditOracle, EditOracleSoft
from pipelines.starter.image.community import HiddenTaste
from pipelines.starter.image_to_video.oracle import FirstKept
from pipelines.starter.oracle import Oracle, OracleSoft
from pipelines.starter.video.oracle import DynamicDegree
from workbench.core.types import Reward

ORACLES: tuple[type[Reward], ...] = (
    Oracle,
    OracleSoft,
    HiddenTaste,
    DynamicDegree,
    FirstKept,
    EditOracle,
    EditOracleSoft,
    EditDone,
    EditKept,
    EditGround,
)
