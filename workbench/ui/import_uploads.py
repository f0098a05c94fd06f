"""Media that somebody hands in to be compared: uploads and archives become folders of ours, and these a run.

No path comes from a user: of an upload's name its last part is kept, of an archive's member its parts, each in letters
that we choose, inside a folder of ours.
"""

from __future__ import annotations

import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from workbench.core.errors import BadInput
from workbench.core.io import formats
from workbench.engine import import_media, run
from workbench.engine.plan import check_disk, plan_run
from workbench.runs.config import RunConfig, check_config
from workbench.runs.plan import Plan
from workbench.runs.prompt_files import READERS
from workbench.runs.store import RunFolder
from workbench.ui.context import AppContext
from workbench.ui.uploads import MB, display_name

MAX_FILES = 5000  # of one import
MAX_BYTES = 4096 * MB  # of all of them, unpacked
SUFFIXES = {suffix for kind in formats.FORMATS for suffix in kind.suffixes} | set(filter(None, READERS))


@dataclass(frozen=True)
class ImportRequest:
    """What the form of an import says."""

    names: Sequence[str]  # of the folders; "" for one after its own
    folders: Sequence[Sequence[str]]  # the uploaded files of each
    archive: str = ""  # a zip, each folder of which is one more
    prompts: str = ""  # an uploaded file of prompts
    pair: str = ""
    rewards: Sequence[str] = ()
    title: str = "import"


def plan_upload(request: ImportRequest, temp: Path) -> Plan:
    """The plan of an import, of copies in `temp`. Raises BadInput."""
    folder = temp / f"import-{uuid.uuid4().hex}"
    try:
        places = _gather_folders(request, folder)
        contestants = import_media.contestants_of(places)
        prompts = str(_copy_prompts(request.prompts, folder)) if request.prompts else ""
        config = RunConfig(
            contestants=contestants,
            prompts=prompts,
            pair=request.pair,  # type: ignore[arg-type]
            watch=dict.fromkeys(request.rewards, 1.0) or None,
            name=clean_name(request.title) or "import",
        )
        plan = plan_run(check_config(config), "uploaded in the app")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, BadInput):  # the person knows nothing of our folders
            raise BadInput(str(error).replace(f"{folder}/archive/", "").replace(f"{folder}/", "")) from None
        raise
    return plan


def execute_upload(plan: Plan, context: AppContext) -> tuple[RunFolder, object]:
    """(the run's folder, the job that fills it). Raises BadInput where the disk has no room."""
    check_disk(plan, context.runs)
    folder = RunFolder.open(context.runs, plan.config.name, asdict(plan.config), fresh=True)

    def work(stop) -> Iterator[dict]:
        total = plan.batch_count * len(plan.methods)
        for parts, progress in enumerate(run.execute_run(plan, folder, stop), 1):
            yield {"done": min(parts, total), "total": total, "note": progress.note}

    return folder, context.jobs.submit(f"import {plan.config.name}", work)


def clean_name(text: str) -> str:
    """A name in the letters that contestants and runs may have; "" where none is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60]


def _gather_folders(request: ImportRequest, folder: Path) -> list[str]:
    """`NAME=FOLDER` of what was handed in. Raises BadInput for nothing, and for more than an import may hold."""
    folder.mkdir(parents=True)
    uploads = [(name, paths) for name, paths in zip(request.names, request.folders, strict=True) if paths]
    if sum(len(paths) for _, paths in uploads) > MAX_FILES:
        raise BadInput(f"more than {MAX_FILES:,} files; import larger folders by: workbench import FOLDER …")
    places = []
    for number, (name, paths) in enumerate(uploads):
        label = clean_name(name) or chr(ord("A") + number)
        _copy_uploads(paths, folder / label)
        places.append(f"{label}={folder / label}")
    if request.archive:
        places += _unpack_archive(Path(request.archive), folder / "archive")
    if not places:
        raise BadInput("nothing is there to import; choose a folder, or a zip of folders")
    return places


def _copy_uploads(paths: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    size = 0
    for path in map(Path, paths):
        size += path.stat().st_size
        if size > MAX_BYTES:
            raise BadInput(f"more than {MAX_BYTES // MB:,} MB; import larger folders by: workbench import FOLDER …")
        target = folder / (_clean_part(path.name) or "file")
        if target.exists():
            raise BadInput(f"two files are called {display_name(path)}; give a zip, which keeps their folders")
        shutil.copyfile(path, target)


def _copy_prompts(path: str, folder: Path) -> Path:
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise BadInput(f"{display_name(path)}: prompts are read from {', '.join(filter(None, READERS))}")
    copy = folder / f"prompts{suffix}"
    shutil.copyfile(path, copy)
    return copy


def _unpack_archive(path: Path, folder: Path) -> list[str]:
    """`NAME=FOLDER` of each folder of a zip; of one without folders, its own. Raises BadInput for what is no zip, is
    protected by a password, or holds too much."""
    name = display_name(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if _is_wanted(member)]
            if len(members) > MAX_FILES:
                raise BadInput(f"{name}: more than {MAX_FILES:,} files; unpack it, then: workbench import FOLDER …")
            size = 0
            for member in members:
                if member.flag_bits & 1:
                    raise BadInput(f"{name}: is protected by a password; give one that is not")
                parts = [_clean_part(part) for part in PurePosixPath(member.filename).parts]
                target = folder.joinpath(*filter(None, parts))
                target.parent.mkdir(parents=True, exist_ok=True)
                size += _unpack_member(archive, member, target, MAX_BYTES - size, name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise BadInput(f"{name}: can't be read as a zip ({str(error)[:100]})") from None
    if not members:
        raise BadInput(f"{name}: holds no pictures, clips or sounds")
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    if any(p.is_file() and p.suffix not in READERS for p in folder.iterdir()) or not inside:
        return [f"{clean_name(path.stem) or 'zip'}={folder}"]
    return [f"{clean_name(p.name) or f'folder-{n}'}={p}" for n, p in enumerate(inside, 1)]


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, limit: int, name: str) -> int:
    """Bytes written, counted as they come: what an archive says of itself need not be so."""
    size = 0
    with archive.open(member) as source, open(target, "xb") as copy:
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > limit:
                raise BadInput(f"{name}: more than {MAX_BYTES // MB:,} MB; unpack it, then: workbench import FOLDER …")
            copy.write(chunk)
    return size


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a file of media or prompts, and no link."""
    path = PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not (member.is_dir() or is_link or is_hidden) and path.suffix.lower() in SUFFIXES


def _clean_part(part: str) -> str:
    """A part of a path without what could lead out of a folder; the words of a prompt stay in it."""
    part = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "", part)
    return "" if set(part) <= {"."} else part.encode()[:200].decode(errors="ignore")
