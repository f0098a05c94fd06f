"""Public text-to-image benchmarks: how their prompt files are read, and where their own scorers look for pictures.

Layouts and names were read in the scorers' own code, at these revisions:

  geneval        djghosh13/geneval @ af4902f, evaluation/evaluate_images.py: folders of digits, metadata.jsonl, \\d+.png
  t2i-compbench  Karine-Huang/T2I-CompBench @ 1b70949, BLIP_vqa.py, CLIP_similarity.py and UniDet's generate_dataset.py:
                 a picture's prompt is its file name up to the first `_`, its number is what follows
  hpdv2          tgxs002/HPSv2 @ 866735e, hpsv2/evaluation.py, evaluate_benchmark: STYLE/00000.jpg, and every name in
                 the folder counts as a style
  drawbench      the same file, evaluate_benchmark_DB: MODEL/00000.jpg and drawbench.json. DrawBench's authors asked
                 people and published no scorer; the columns are those that shunk031/huggingface-datasets_DrawBench
                 @ 6324c60 reads from their spreadsheet, which itself was not seen
  unigenbench    CodeGoat24/UniGenBench @ 49d0bce, eval/src/eval_common.py: LANGUAGE/MODEL/INDEX_K.png

Not verified, as there is nothing to verify: PartiPrompts (google-research/parti @ 5a65797, PartiPrompts.tsv) has no
scorer. Its layout here is an `imagefolder` of Hugging Face datasets. The file reading of the five scorers was tried on
what is written, their models were not.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.io import parsing
from workbench.core.schema import suggest_nearest
from workbench.runs.config import RunConfig

STYLES = ("anime", "concept-art", "paintings", "photo")  # of HPDv2
LANGUAGES = ("en", "en_long", "zh", "zh_long")  # of UniGenBench
CATEGORIES = (
    "3d_spatial",
    "non_spatial",
    "spatial",
    "color",
    "shape",
    "texture",
    "numeracy",
    "complex",
)  # T2I-CompBench
MAX_NAME_BYTES = 240  # of a prompt in a file name: most disks allow 255 in all, and number and suffix follow


@dataclass(frozen=True)
class Entry:
    """One prompt of a benchmark."""

    number: int  # as its scorer counts
    prompt: str
    part: str = ""  # the style, language or category that it belongs to
    line: str = ""  # JSON that goes along with its pictures


@dataclass(frozen=True)
class Suite:
    """A benchmark: how its prompts are read, where its scorer looks, and how that is called."""

    read_entries: Callable[[Path], list[Entry]]
    picture_path: Callable[[Entry, int, int, str], str]  # (entry, k, running number, model's name) -> path under OUT
    images_per_prompt: int  # of one prompt, as published
    scorer: str = ""  # the repository of the scorer; '' when there is none
    # part ('' any) -> shell commands, in a checkout of `scorer`
    command_templates: Mapping[str, Sequence[str]] | None = None
    # (entries, images per prompt) -> further files: path -> text
    extra_files: Callable[[Sequence[Entry], int], dict[str, str]] = lambda entries, seeds: {}
    is_single_image: bool = False  # the scorer reads one picture a prompt
    prompt_as_read: Callable[[str], str] = str  # a prompt as the scorer will read it

    def renamed_prompts(self, entries: Sequence[Entry]) -> list[str]:
        """Prompts that the scorer will read differently, since no file can have their name."""
        return [e.prompt for e in entries if self.prompt_as_read(e.prompt) != e.prompt]

    def scorer_commands(self, part: str, out: Path, prompts: Path, config: RunConfig) -> list[str]:
        """The official scorer's commands, to be run in a checkout of its repository; none where there is no scorer."""
        values = {"out": out.resolve(), "prompts": prompts.resolve(), "name": config.name}
        values |= {"part": part, "seeds": config.samples_per_prompt}
        quoted = {key: shlex.quote(str(value)) for key, value in values.items()}
        templates = self.command_templates or {}
        return [command.format(**quoted) for command in templates.get(part, templates.get("", ()))]


def read_text(path: Path) -> str:
    try:
        text = parsing.read_text(path)
    except BadInput as error:
        raise BadInput(f"{error}; give the benchmark's prompt file") from None
    if "\0" in text:
        raise BadInput(f"{path}: not a text file in UTF-8; give the benchmark's prompt file")
    return text


def check_prompt(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: no prompt there")
    if "\0" in value or value.encode(errors="ignore").decode() != value:
        raise BadInput(f"{where}: the prompt holds what is not text")
    return value.strip()


def read_table(path: Path, columns: Sequence[str], **csv_format: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of each row of a table with a header, whose names are read in lower case."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, **csv_format)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if absent := [name for name in columns if name not in header]:
            raise BadInput(f"{path}, line 1: no column {absent[0]!r}; {suggest_nearest(absent[0], header)}")
        for row in filter(any, reader):
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise BadInput(f"{where}: {len(row)} cells where the header has {len(header)}")
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not such a table ({error})") from None


def read_geneval(path: Path) -> list[Entry]:
    """`evaluation_metadata.jsonl`: a task a line. The scorer reads that line again from beside the pictures."""
    entries = []
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {line_number}"
        try:
            task = parsing.parse_json(line, where)
        except BadInput as error:
            raise BadInput(f"{error}; GenEval's tasks are in prompts/evaluation_metadata.jsonl") from None
        is_task = isinstance(task, dict) and isinstance(task.get("tag"), str) and isinstance(task.get("include"), list)
        if not is_task or not all(isinstance(c, dict) and {"class", "count"} <= c.keys() for c in task["include"]):
            raise BadInput(
                f'{where}: not of the form {{"tag": …, "include": [{{"class": …, "count": …}}], "prompt": …}}'
            )
        entries.append(Entry(len(entries), check_prompt(task.get("prompt"), where), line=line.strip()))
    return entries


def read_t2i_compbench(path: Path) -> list[Entry]:
    """`color_val.txt` and its like: a prompt a line, up to a tab. The file's name says the category."""
    if path.suffix != ".txt":
        raise BadInput(
            f"{path}: T2I-CompBench's prompts are text files, a prompt a line; give one such as color_val.txt"
        )
    part = next((c for c in CATEGORIES if path.stem.startswith(c)), "")
    entries = []
    for line_number, line in enumerate(parsing.split_lines(read_text(path)), 1):
        if line.strip():
            prompt = check_prompt(line.split("\t")[0], f"{path}, line {line_number}")
            if not prompt_file_name(prompt):
                raise BadInput(f"{path}, line {line_number}: nothing of {prompt!r} can stand in a file name")
            entries.append(Entry(len(entries), prompt, part))
    return entries


def prompt_file_name(prompt: str) -> str:
    """The prompt as T2I-CompBench's scorers find it in a file's name: without what would cut it short there (`_`, more
    than MAX_NAME_BYTES bytes) and what no name can hold (slashes, control characters)."""
    name = re.sub(r"[/\\_\x00-\x1f\x7f]", " ", prompt)
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip()


def read_partiprompts(path: Path) -> list[Entry]:
    """`PartiPrompts.tsv`: Prompt, Category, Challenge, Note, without quoting."""
    rows = read_table(path, ("prompt", "category", "challenge"), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Entry(n, check_prompt(row["prompt"], where), line=json.dumps(row)) for n, (where, row) in enumerate(rows)]


def read_drawbench(path: Path) -> list[Entry]:
    """The spreadsheet as CSV (Prompts, Category), or HPDv2's `drawbench.json`."""
    if path.suffix == ".json":
        return read_prompt_list(path)
    rows = read_table(path, ("prompts", "category"))
    return [Entry(n, check_prompt(row["prompts"], where), row["category"]) for n, (where, row) in enumerate(rows)]


def read_hpdv2(path: Path) -> list[Entry]:
    """`anime.json`, `concept-art.json`, `paintings.json` or `photo.json`, or a folder of them: lists of prompts."""
    files = [path / f"{style}.json" for style in STYLES] if path.is_dir() else [path]
    files = [f for f in files if f.is_file()]
    if not files:
        raise BadInput(f"{path}: holds none of {', '.join(f'{style}.json' for style in STYLES)}")
    if files[0].stem not in STYLES:
        raise BadInput(f"{path}: HPDv2's files are named by their style; {suggest_nearest(path.stem, STYLES)}")
    return [entry for file in files for entry in read_prompt_list(file, file.stem)]


def read_prompt_list(path: Path, part: str = "") -> list[Entry]:
    prompts = parsing.parse_json(read_text(path), str(path))
    if not isinstance(prompts, list):
        raise BadInput(f"{path}: not a list of prompts, as HPDv2's benchmark files are")
    return [Entry(n, check_prompt(p, f"{path}, prompt {n + 1}"), part) for n, p in enumerate(prompts)]


def read_unigenbench(path: Path) -> list[Entry]:
    """`test_prompts_en.csv` and its like: index, prompt_en or prompt_zh, sub_dims_en or sub_dims_zh."""
    part = path.stem.removeprefix("test_prompts_")
    if part not in LANGUAGES:
        raise BadInput(
            f"{path}: not named as UniGenBench's files are; "
            f"{suggest_nearest(path.stem, map(UNIGENBENCH_FILE.format, LANGUAGES))}"
        )
    column, entries = f"prompt_{part[:2]}", {}
    for where, row in read_table(path, ("index", column, f"sub_dims_{part[:2]}")):
        if not re.fullmatch(r"[0-9]{1,9}", row["index"]) or int(row["index"]) in entries:
            raise BadInput(f"{where}: the index {row['index']!r} is not a whole number, or stands there twice")
        entries[int(row["index"])] = Entry(int(row["index"]), check_prompt(row[column], where), part)
    return [*entries.values()]


UNIGENBENCH_FILE = "test_prompts_{}"


def geneval_metadata(entries: Sequence[Entry], seeds: int) -> dict[str, str]:
    return {f"{e.number:05d}/metadata.jsonl": e.line for e in entries}


def imagefolder_metadata(entries: Sequence[Entry], seeds: int) -> dict[str, str]:
    rows = [{"file_name": f"{e.number:05d}_{k}.png"} | json.loads(e.line) for e in entries for k in range(seeds)]
    return {"images/metadata.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)}


def drawbench_prompts(entries: Sequence[Entry], seeds: int) -> dict[str, str]:
    return {"drawbench.json": json.dumps([e.prompt for e in entries], ensure_ascii=False)}


BLIP = "cd BLIPvqa_eval && python BLIP_vqa.py --out_dir {out}"
CLIP = "python CLIPScore_eval/CLIP_similarity.py --outpath {out}"
UNIDET = "cd UniDet_eval && python {}_eval.py --outpath {{out}}"  # without a last slash, or 3D loses its depth maps

SUITES: dict[str, Suite] = {
    "geneval": Suite(
        read_geneval,
        lambda e, k, n, name: f"{e.number:05d}/samples/{k:05d}.png",
        images_per_prompt=4,
        scorer="djghosh13/geneval",
        command_templates={
            "": (
                "python evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl --model-path DETECTORS",
                "python evaluation/summary_scores.py {out}/results.jsonl",
            )
        },
        extra_files=geneval_metadata,
    ),
    "t2i-compbench": Suite(
        read_t2i_compbench,
        lambda e, k, n, name: f"samples/{prompt_file_name(e.prompt)}_{n:06d}.png",
        images_per_prompt=10,
        prompt_as_read=prompt_file_name,
        scorer="Karine-Huang/T2I-CompBench",
        command_templates={
            **dict.fromkeys(("color", "shape", "texture"), (BLIP,)),
            "spatial": (UNIDET.format("2D_spatial"),),
            "3d_spatial": (UNIDET.format("3D_spatial"),),
            "numeracy": (UNIDET.format("numeracy"),),
            "non_spatial": (CLIP,),
            "complex": (
                BLIP,
                UNIDET.format("2D_spatial") + " --complex True",
                CLIP + " --complex True",
                "cd 3_in_1_eval && python 3_in_1.py --outpath {out}",
            ),
        },
    ),
    "partiprompts": Suite(
        read_partiprompts,
        lambda e, k, n, name: f"images/{e.number:05d}_{k}.png",
        images_per_prompt=1,
        extra_files=imagefolder_metadata,
    ),
    "drawbench": Suite(
        read_drawbench,
        lambda e, k, n, name: f"drawbench_imgs/{name}/{e.number:05d}.jpg",
        images_per_prompt=1,
        scorer="tgxs002/HPSv2",
        command_templates={
            "": (
                "python -c 'import sys; from hpsv2.evaluation import evaluate; "
                'evaluate("drawbench", *sys.argv[1:])\''
                " {out}/drawbench_imgs {out}",
            )
        },
        extra_files=drawbench_prompts,
        is_single_image=True,
    ),
    "hpdv2": Suite(
        read_hpdv2,
        lambda e, k, n, name: f"benchmark_imgs/{name}/{e.part}/{e.number:05d}.jpg",
        images_per_prompt=1,
        scorer="tgxs002/HPSv2",
        command_templates={
            "": (
                "python -c 'import sys, hpsv2; hpsv2.evaluate(sys.argv[1], hps_version=\"v2.1\")'"
                " {out}/benchmark_imgs/{name}",
            )
        },
        is_single_image=True,
    ),
    "unigenbench": Suite(
        read_unigenbench,
        lambda e, k, n, name: f"{e.part}/{name}/{e.number}_{k}.png",
        images_per_prompt=4,
        scorer="CodeGoat24/UniGenBench",
        command_templates={
            "": (
                "python eval/src/offline_model_{part:.2}_eval.py --data_path {out}/{part}/{name} "
                "--csv_file {prompts} --category {part} --images_per_prompt {seeds} --api_url http://localhost:8080",
            )
        },
    ),
}
