"""From what people did to what they prefer: an interaction log becomes pairs (prompt, pos_path, neg_path).

Social Reward (Isajanyan et al., ICLR 2024, arXiv:2402.09872) trains on such pairs
and leaves out how they are made. Here:

1. Users who like (nearly) everything or faster than a person can are left out; a heavy user's weight is bounded.
2. Popularity is the share of the people who SAW a picture and engaged with it, during the same `window` of its life,
   shrunk by an empirical-Bayes Beta prior whose mean is the topic's: for n weighted viewers, k of them engaged,
   p ~ Beta(k + M m, n - k + M (1 - m)); M by the method of moments (Kleinman 1973, doi:10.1080/01621459.1973.10481332).
3. Two pictures of one prompt, shown at about the same time, become a pair where P(p_a > p_b) >= `confidence` (normal
   approximation to the two posteriors). The worse one was seen by `min_views` people at least and passed over.
4. No prompt is in two splits, and everything in a later split happened after everything in an earlier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.fft import dctn
from scipy.special import ndtr

from rewards.encoders.preprocess import resize_images
from workbench.core.errors import BadInput
from workbench.core.io import image
from workbench.core.schema import suggest_nearest
from workbench.core.types import Count, Natural, NonNegative, derive_seed

DAY = 86_400.0
COLUMNS = ("item", "prompt", "path", "user", "event", "time")
ENGAGED = ("like", "remix", "share")
EVENTS = ("view", *ENGAGED)
SPLITS = ("train", "val", "test")
MIN_SEEN = 10  # items that a user must have seen before liking everything says something about the user
MAX_ITEMS = 1000  # pictures of one prompt that are compared; of more, this many are drawn


@dataclass(frozen=True)
class Curation:
    """How a log becomes pairs. Times are days."""

    measure: Literal["rate", "count"] = (
        "rate"  # rate: engaged / saw, shrunk; count: engagements as they are (a baseline)
    )
    engagements: tuple[str, ...] = ENGAGED  # the events that count as engaging; the paper counts `remix`
    min_views: Natural = 10  # people who must have seen a picture
    window: NonNegative = 14.0  # counted from a picture's first event; a younger picture is left out
    apart: NonNegative = 14.0  # pictures that came further apart are not compared
    cap: Natural = 200  # someone who saw more pictures than this weighs cap / seen; 0: no cap
    generous: NonNegative = 0.9  # who engages with this share of what they see, or more, is left out; over 1: nobody
    burst: Natural = 30  # who engages more often than this within a minute is left out; 0: nobody
    duplicates: int = 6  # pictures of one prompt whose 192-bit hashes differ in fewer bits are one; -1: none are read
    confidence: NonNegative = 0.9  # least P(pos is truly more popular than neg)
    per_item: Count = 8  # pairs that one picture may be in
    shares: tuple[float, ...] = (0.7, 0.1, 0.2)  # of prompts and of time: train, val, test
    seed: Natural = 0

    def __post_init__(self):
        if unknown := [e for e in self.engagements if e not in ENGAGED]:
            raise BadInput(f"engagements: {unknown[0]!r} is no engagement; {suggest_nearest(unknown[0], ENGAGED)}")
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6 or not self.shares[0]:
            raise BadInput(f"shares: three shares of train, val and test that sum to 1, got {list(self.shares)}")
        if not 0.5 <= self.confidence < 1:
            raise BadInput(f"confidence: a probability from 0.5 to below 1, got {self.confidence:g}")


RAW = Curation("count", min_views=0, cap=0, generous=2.0, burst=0, duplicates=-1, apart=1e9)  # what curation must beat


# --- reading ---------------------------------------------------------------------------------------------------------


def read_log(path: str | Path) -> pd.DataFrame:
    """The log in a .csv, .jsonl or .parquet file: COLUMNS, `topic` (the prompt where there is none), `time` in seconds.

    `path` is resolved against the log's folder. Raises BadInput for a missing or empty file, a missing column, an
    unknown event, a time that is none, or an item with two prompts or paths.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give the interaction log as .csv, .jsonl or .parquet")
    log = _read_table(path)
    if log.empty:
        raise BadInput(f"{path}: the log has no rows")
    log.columns = [str(c) for c in log.columns]
    for column in COLUMNS:
        if column not in log:
            raise BadInput(f"{path}: the column {column!r} is missing; {suggest_nearest(column, log.columns)}")
    if "topic" not in log:
        log["topic"] = log["prompt"]
    log = log[[*COLUMNS, "topic"]].copy()
    if (empty := log.isna().any()).any():
        raise BadInput(f"{path}: the column {empty.idxmax()!r} has empty values; fill them or leave those rows out")
    log["time"] = _to_seconds(log["time"], path)
    for column in ("item", "prompt", "path", "user", "event", "topic"):
        log[column] = log[column].astype(str).astype("category")
    if unknown := [e for e in log["event"].cat.categories if e not in EVENTS]:
        raise BadInput(f"{path}: unknown event {unknown[0]!r}; {suggest_nearest(unknown[0], EVENTS)}")
    texts = log[["item", "prompt", "path", "topic"]].drop_duplicates()
    if texts["item"].duplicated().any():
        item = texts.loc[texts["item"].duplicated(), "item"].iloc[0]
        raise BadInput(f"{path}: item {item!r} has two prompts, paths or topics; an item is one picture for one prompt")
    return log


def _read_table(path: Path) -> pd.DataFrame:
    texts = {c: str for c in COLUMNS if c != "time"} | {"topic": str}
    readers = {
        ".csv": lambda: pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""]),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
        ".parquet": lambda: pd.read_parquet(path),
    }  # fmt: skip
    if path.suffix not in readers:
        raise BadInput(f"{path}: a log is .csv, .jsonl or .parquet, not {path.suffix or 'a file without a suffix'}")
    try:
        return readers[path.suffix]()
    except pd.errors.EmptyDataError:
        raise BadInput(f"{path}: the log has no rows") from None
    except ImportError:
        raise BadInput(f"{path}: reading parquet needs pyarrow; pip install pyarrow, or give .csv or .jsonl") from None
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable {path.suffix} file: {str(error).splitlines()[0][:200]}") from None


def _to_seconds(time: pd.Series, path: Path) -> pd.Series:
    """Unix seconds of numbers, or of dates that pandas reads (UTC where no zone is given)."""
    numbers = pd.to_numeric(time, errors="coerce")
    if not numbers.isna().any():
        return numbers.astype(float)
    dates = pd.to_datetime(time.astype(str), errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        raise BadInput(f"{path}: {time[dates.isna()].iloc[0]!r} is no time; give Unix seconds or ISO 8601")
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


# --- counting --------------------------------------------------------------------------------------------------------


def user_weights(log: pd.DataFrame, c: Curation) -> pd.DataFrame:
    """A row a user: `seen` and `engaged` (items), `fastest` (engagements in one minute), `why`, `weight` in [0,1]."""
    hot = log[log["event"].isin(c.engagements)]
    users = pd.DataFrame({"seen": log.drop_duplicates(["user", "item"])["user"].value_counts()})
    users["engaged"] = hot.drop_duplicates(["user", "item"])["user"].value_counts()
    users["fastest"] = _fastest_minute(hot.sort_values(["user", "time"]), c.burst)
    users = users.fillna(0)
    generous = (users["seen"] >= MIN_SEEN) & (users["engaged"] >= c.generous * users["seen"])
    bursts = (users["fastest"] > c.burst) & bool(c.burst)
    users["why"] = np.select([bursts, generous], ["too fast", "likes everything"], "")
    heavy = np.minimum(1.0, c.cap / users["seen"].clip(lower=1)) if c.cap else 1.0
    users["weight"] = np.where(users["why"] == "", heavy, 0.0)
    return users


def _fastest_minute(hot: pd.DataFrame, burst: int) -> pd.Series:
    """Per user: burst + 1 where so many engagements lie within one minute, else 0. `hot` is sorted by user and time."""
    user, time = hot["user"].cat.codes.to_numpy(), hot["time"].to_numpy()
    if not burst or len(hot) <= burst:
        return pd.Series(0, index=hot["user"].cat.categories)
    fast = (user[burst:] == user[:-burst]) & (time[burst:] - time[:-burst] < 60)
    is_burst = np.bincount(user[burst:][fast], minlength=len(hot["user"].cat.categories)) > 0
    return pd.Series(np.where(is_burst, burst + 1, 0), index=hot["user"].cat.categories)


def item_counts(log: pd.DataFrame, weight: pd.Series, c: Curation) -> pd.DataFrame:
    """A row an item: `posted` (its first event), and within the window since then the people who saw it (`views`),
    their weights' sum `n`, that of those who engaged `k`, and the number of engagements `events`. An engagement is a
    view too."""
    items = log.groupby("item", observed=True).agg(
        prompt=("prompt", "first"), topic=("topic", "first"), path=("path", "first"), posted=("time", "min")
    )
    posted = log["item"].map(items["posted"]).astype(float)
    early = log[log["time"] <= posted + c.window * DAY]
    one = pd.DataFrame({"item": early["item"], "user": early["user"], "hot": early["event"].isin(c.engagements)})
    items["events"] = one.groupby("item", observed=True)["hot"].sum()
    saw = one.groupby(["item", "user"], observed=True, sort=False)["hot"].max().reset_index()
    saw["w"] = saw["user"].map(weight).astype(float)
    saw = saw[saw["w"] > 0].assign(wk=lambda s: s["w"] * s["hot"])
    sums = saw.groupby("item", observed=True).agg(views=("w", "size"), n=("w", "sum"), k=("wk", "sum"))
    return items.join(sums).fillna({"views": 0, "n": 0.0, "k": 0.0})


def shrink_rates(items: pd.DataFrame, c: Curation) -> tuple[pd.DataFrame, dict[str, float]]:
    """Popularity's posterior `mean` and `var` per item, and the prior: global `mean`, `strength` M in viewers.

    A topic's mean is itself shrunk to the global one with the strength M.
    """
    if c.measure == "count":  # a Poisson count under a flat prior: Gamma(events + 1, 1)
        return items.assign(mean=items["events"] + 1.0, var=items["events"] + 1.0), {}
    n, k = items["n"].to_numpy(), items["k"].to_numpy()
    overall = float(np.clip(k.sum() / n.sum(), 1e-6, 1 - 1e-6))
    sums = items.groupby("topic", observed=True)[["n", "k"]].transform("sum").to_numpy()
    rough = sums[:, 1] / sums[:, 0]
    noise = overall * (1 - overall) * len(items) / n.sum()  # what chance alone spreads
    spread = float((n * np.square(k / n - rough)).sum() / n.sum()) - noise
    strength = float(np.clip(overall * (1 - overall) / max(spread, 1e-9) - 1, 1.0, 1e4))
    centre = (sums[:, 1] + strength * overall) / (sums[:, 0] + strength)
    a, b = k + strength * centre, n - k + strength * (1 - centre)
    posterior = items.assign(mean=a / (a + b), var=a * b / (np.square(a + b) * (a + b + 1)))
    return posterior, {"mean": overall, "strength": strength}


# --- splitting, duplicates, pairs ------------------------------------------------------------------------------------


def split_items(items: pd.DataFrame, c: Curation) -> pd.Series:
    """The split of each item, "straddles" where its window crosses from one period to the next, or "elsewhere" where
    its prompt belongs to another split. Time is cut where the shares of the items lie; the prompts, in the order of
    their median item, are cut at the same shares."""
    marks = np.cumsum(c.shares)[:-1]
    inner = [np.quantile(items["posted"], m) if m < 1 - 1e-9 else np.inf for m in marks]
    cuts = np.array([-np.inf, *inner, np.inf])
    period = np.searchsorted(cuts, items["posted"], side="right") - 1
    fits_period = items["posted"] + c.window * DAY < np.append(cuts[1:-1], np.inf)[period]
    prompts = (
        items.groupby("prompt", observed=True)["posted"].agg(["median", "size"]).sort_values("median", kind="stable")
    )
    before = (prompts["size"].cumsum() - prompts["size"]) / prompts["size"].sum()
    prompt_split = (
        items["prompt"].map(pd.Series(np.searchsorted(marks, before, side="right"), prompts.index)).astype(int)
    )
    split_names = np.array(SPLITS)[period]
    return pd.Series(
        np.where(~fits_period, "straddles", np.where(prompt_split == period, split_names, "elsewhere")), items.index
    )


def perceptual_hash(path: Path) -> np.ndarray:
    """192 bits: for each of R, G, B whether the 64 lowest frequencies of a 32 x 32 thumbnail lie above their median.
    Raises BadInput for a file that is no readable picture."""
    small = (resize_images(image.read_image(path)[None], (32, 32))[0] * 255).round().numpy()  # [3,32,32]
    low = dctn(small, axes=(1, 2))[:, :8, :8].reshape(3, 64).T
    return (low > np.median(low, 0)).T.ravel()


def find_duplicates(items: pd.DataFrame, folder: Path, c: Curation) -> np.ndarray:
    """[N] bool: copies of an earlier picture: the same hash anywhere, or nearly the same for the same prompt."""
    with ThreadPoolExecutor() as pool:
        bits = np.array([*pool.map(perceptual_hash, (folder / p for p in items["path"]))])  # [N,192]
    order = items["posted"].to_numpy().argsort(kind="stable")
    _, first = np.unique(np.packbits(bits[order], axis=1), axis=0, return_index=True)
    copy = np.ones(len(items), bool)
    copy[order[first]] = False
    for rows in items.reset_index().groupby("prompt", observed=True).indices.values():
        rows = rows[items["posted"].to_numpy()[rows].argsort(kind="stable")]
        for n, row in enumerate(rows):
            earlier = rows[:n][~copy[rows[:n]]]
            copy[row] |= bool(((bits[earlier] != bits[row]).sum(1) < c.duplicates).any())
    return copy


def make_pairs(items: pd.DataFrame, c: Curation) -> tuple[list[dict[str, Any]], int]:
    """The pairs of each prompt, and how many there would be without the bound `per_item`."""
    rows, candidates = [], 0
    for prompt, group in items.groupby("prompt", observed=True):
        rng = np.random.default_rng(derive_seed(c.seed, "pairs", str(prompt)))
        if len(group) > MAX_ITEMS:
            group = group.iloc[np.sort(rng.choice(len(group), MAX_ITEMS, replace=False))]
        mean, var, posted = (group[x].to_numpy() for x in ("mean", "var", "posted"))
        p_better = ndtr((mean[:, None] - mean) / np.sqrt(var[:, None] + var))  # [m,m] P(row better than column)
        is_pair = (p_better >= c.confidence) & (np.abs(posted[:, None] - posted) <= c.apart * DAY)
        is_pair &= mean[:, None] > mean
        candidate_pairs = np.argwhere(is_pair)
        candidates += len(candidate_pairs)
        used = np.zeros(len(group), int)
        for a, b in rng.permutation(candidate_pairs)[: 4 * c.per_item * len(group)]:
            if used[a] < c.per_item and used[b] < c.per_item:
                used[[a, b]] += 1
                rows.append(_pair_row(group.iloc[a], group.iloc[b], str(prompt), float(p_better[a, b])))
    return rows, candidates


def _pair_row(pos: pd.Series, neg: pd.Series, prompt: str, confidence: float) -> dict[str, Any]:
    row = {
        "prompt": prompt,
        "pos_path": pos["path"],
        "neg_path": neg["path"],
        "pos_item": pos.name,
        "neg_item": neg.name,
    }
    views = {"pos_views": int(pos["views"]), "neg_views": int(neg["views"])}
    return row | {"topic": pos["topic"], "confidence": round(confidence, 4)} | views


@dataclass(frozen=True)
class Curated:
    """The pairs of each split, and the data card: what was counted, and what was left out and why."""

    splits: dict[str, list[dict[str, Any]]]
    card: dict[str, Any]


def curate_log(log: pd.DataFrame, folder: Path, c: Curation = Curation()) -> Curated:
    """The log (see `read_log`) as pairs; `folder` is what its paths are relative to.

    Raises BadInput when nothing is left to train on, saying which step took the most.
    """
    users = user_weights(log, c)
    all_items, steps = item_counts(log, users["weight"], c), []
    end = float(log["time"].max())

    def keep_items(items: pd.DataFrame, stays: Sequence[bool], why: str) -> pd.DataFrame:
        steps.append({"left out": why, "items": int(len(items) - np.sum(stays)), "left": int(np.sum(stays))})
        return items[np.asarray(stays, bool)]

    items = keep_items(
        all_items, all_items["posted"] + c.window * DAY <= end, f"not followed for the whole {c.window:g} days"
    )
    items = keep_items(items, items["views"] >= max(c.min_views, 1), f"seen by fewer than {max(c.min_views, 1)} people")
    if len(items):
        items = items.assign(split=split_items(items, c))
        items = keep_items(
            items, items["split"] != "straddles", "its window crosses from one split's period to the next"
        )
        items = keep_items(items, items["split"] != "elsewhere", "its prompt belongs to another split")
    if len(items) and c.duplicates >= 0:
        items = keep_items(items, ~find_duplicates(items, folder, c), "a near-duplicate of an earlier picture")
    if not len(items):
        worst = max(steps, key=lambda s: s["items"])
        span = (end - log["time"].min()) / DAY
        raise BadInput(
            f"the log of {span:.1f} days leaves no picture: {worst['items']} of {len(all_items)} were left out "
            f"as {worst['left out']!r}; a smaller window or min_views keeps more"
        )
    items, prior = shrink_rates(items, c)
    pairs_by_split = {name: make_pairs(items[items["split"] == name], c) for name in SPLITS}
    if not pairs_by_split["train"][0]:
        raise BadInput(f"no pair of the {len(items)} pictures left is surer than {c.confidence:g}; lower `confidence`")
    return Curated(
        {n: p for n, (p, _) in pairs_by_split.items()}, _data_card(log, users, items, steps, prior, pairs_by_split, c)
    )


def _data_card(
    log: pd.DataFrame,
    users: pd.DataFrame,
    items: pd.DataFrame,
    steps: list[dict[str, Any]],
    prior: dict[str, float],
    pairs_by_split: dict[str, tuple[list[dict[str, Any]], int]],
    c: Curation,
) -> dict[str, Any]:
    excluded = users[users["why"] != ""]
    reasons = log["user"].map(users["why"]).astype(str)
    topics = {}
    for topic, group in items.groupby("topic", observed=True):
        viewers, engaged = float(group["n"].sum()), float(group["k"].sum())
        count = sum(p["topic"] == topic for rows, _ in pairs_by_split.values() for p in rows)
        topics[str(topic)] = {
            "items": len(group),
            "viewers": round(viewers),
            "engaged": round(engaged / max(viewers, 1), 4),
            "pairs": count,
        }
    splits = {}
    for name, (rows, candidates) in pairs_by_split.items():
        split_items = items[items["split"] == name]
        views = [v for r in rows for v in (r["pos_views"], r["neg_views"])]
        times = [
            pd.Timestamp(t, unit="s").isoformat()
            for t in (split_items["posted"].min(), split_items["posted"].max())
            if t == t
        ]
        splits[name] = {"prompts": len({r["prompt"] for r in rows}), "items": len(split_items), "posted": times,
                        "pairs": len(rows), "sure pairs": candidates, "median viewers of a picture in a pair":
                        float(np.median(views)) if views else None}  # fmt: skip
    return {
        "settings": asdict(c),
        "log": {
            "rows": len(log), "items": int(log["item"].nunique()), "users": len(users),
            "prompts": int(log["prompt"].nunique()),
            "days": round((log["time"].max() - log["time"].min()) / DAY, 2),
            "events": {e: int(n) for e, n in log["event"].value_counts().items()},
            "sha256": hashlib.sha256(pd.util.hash_pandas_object(log, index=False).to_numpy().tobytes()).hexdigest(),
        },
        "users left out": {
            str(w): {"users": int(n), "rows": int((reasons == w).sum())}
            for w, n in excluded["why"].value_counts().items()
        },
        "users damped": int(((users["weight"] > 0) & (users["weight"] < 1)).sum()),
        "items left out": steps,
        "prior": prior,
        "topics": topics,
        "splits": splits,
    }  # fmt: skip
