"""Which pair of a study a rater is asked about next, and what is kept of the answer. Each step is one transaction: a
server that is killed between two of them loses nothing and doubles nothing."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.core.io.parsing import parse_json
from workbench.feedback import ratings, votes
from workbench.feedback.contestants import describe_settings, name_contestant, pipeline_of
from workbench.feedback.studies import Study, read_study
from workbench.feedback.votes import Pair, Refusal, Side, current_time, open_for_writing
from workbench.runs import store

RESERVED_SECONDS = 600  # that a pair counts as being voted on after a rater was asked
MAX_TRIES = 8  # choices that others may have made meanwhile
TABLES = 8  # studies whose pairs are kept in memory
END = {
    "target": "That was your last pair. Thank you!",
    "complete": "Every pair has its votes now. Thank you!",
    "closed": "This study is closed. Thank you!",
    "wait": "",  # there will be more once the open ones are answered
}


@dataclass(frozen=True)
class Battle:
    """A pair of a study as one rater is asked about it."""

    id: str
    pair: int
    is_swapped: bool  # `other` is on the left


@dataclass(frozen=True, eq=False)
class PairTable:
    """The pairs of a study, which never change."""

    ids: np.ndarray  # [N]
    is_gold: np.ndarray  # [N]
    one: np.ndarray  # [N]: the contestants of `one` and `other`, by number
    other: np.ndarray
    meeting: np.ndarray  # [N]: the row of `meetings`
    meetings: np.ndarray  # [M,2]: contestants, by number
    names: tuple[tuple[str, str], ...]  # (contestant across runs, modality)
    index: dict[int, int]  # of each pair in `ids`


_tables: OrderedDict[tuple, PairTable] = OrderedDict()
_tables_lock = threading.Lock()


def read_pairs(db: sqlite3.Connection, runs: Path, study: Study) -> PairTable:
    """The pairs of a study, kept in memory after the first time."""
    key = (str(runs.resolve()), study.number, study.created)
    with _tables_lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key]
    table = _read_table(db, study)
    with _tables_lock:
        _tables[key] = table
        while len(_tables) > TABLES:
            _tables.popitem(last=False)
    return table


def _read_table(db: sqlite3.Connection, study: Study) -> PairTable:
    rows = db.execute(
        "SELECT p.id, p.is_gold, a.contestant AS one, b.contestant AS other, a.modality, runs.folder, runs.config "
        "FROM study_pairs p JOIN artefacts a ON a.id = p.one JOIN artefacts b ON b.id = p.other "
        "JOIN runs ON runs.id = a.run WHERE p.study = ? ORDER BY p.id",
        (study.number,),
    ).fetchall()
    labels: dict[tuple, str] = {}
    for folder, text in {row["folder"]: row["config"] for row in rows}.items():
        config = parse_json(text, folder)
        for who in {row[x] for row in rows if row["folder"] == folder for x in ("one", "other")}:
            labels[folder, who] = name_contestant(who, describe_settings(config, who), pipeline_of(config, who))
    vote_ids = [[(labels[row["folder"], row[x]], row["modality"]) for x in ("one", "other")] for row in rows]
    names = tuple(sorted({name for pair in vote_ids for name in pair}))
    number = {name: n for n, name in enumerate(names)}
    sides = np.array([[number[name] for name in pair] for pair in vote_ids], int)
    meetings, meeting = np.unique(np.sort(sides, axis=1), axis=0, return_inverse=True)
    return PairTable(
        ids=np.array([row["id"] for row in rows], int),
        is_gold=np.array([row["is_gold"] for row in rows], bool),
        one=sides[:, 0],
        other=sides[:, 1],
        meeting=meeting.reshape(-1),
        meetings=meetings,
        names=names,
        index={row["id"]: n for n, row in enumerate(rows)},
    )


def ask_battle(
    runs: Path, name: str, rater: str, have: Collection[str] = (), rng: np.random.Generator | None = None
) -> tuple[Battle | str, int]:
    """(the next pair for this rater, or a key of END that says why there is none; how many votes they have given).

    have: battles that the rater's page shows or holds ready. One that was asked before and is neither answered nor
    there is asked again, so that a page that is loaded anew goes on where it was. Raises BadInput for no such study.
    """
    rng = rng or np.random.default_rng()
    for attempt in range(MAX_TRIES):
        with store.read_index(runs) as db:  # the choice takes longest, and nobody has to wait for it
            study = read_study(db, name)
            own_battles = _battles_of_rater(db, study, rater)
            vote_count = sum(row["is_standing"] for row in own_battles)
            if study.closed:
                return "closed", vote_count
            unanswered = [row for row in own_battles if not row["is_voted"] and not row["is_skipped"]]
            for row in unanswered:
                if row["id"] not in have:
                    return Battle(row["id"], row["pair"], bool(row["is_swapped"])), vote_count
            if study.target and vote_count + len(unanswered) >= study.target:
                return ("wait" if unanswered else "target"), vote_count
            table = read_pairs(db, runs, study)
            seen_pairs = {row["pair"] for row in own_battles}
            pair = _choose_pair(db, study, table, seen_pairs, vote_count + len(unanswered), rater, rng)
        if pair is None:
            return ("wait" if unanswered else "complete"), vote_count
        with open_for_writing(runs) as db:
            is_last_try = attempt == MAX_TRIES - 1
            if len(_battles_of_rater(db, study, rater)) == len(own_battles) and (
                is_last_try or _is_free(db, study, pair, since_reserved=attempt < MAX_TRIES // 2)
            ):
                return _insert_battle(db, pair, rater, bool(rng.integers(2))), vote_count
    raise Refusal("too many people ask at once; ask again")


def _is_free(db: sqlite3.Connection, study: Study, pair: int, since_reserved: bool) -> bool:
    """Whether a pair still needs votes, now that nobody else can choose it."""
    gold, vote_counts, voted = db.execute(
        "SELECT p.is_gold, COUNT(b.id), COUNT(v.id) FROM study_pairs p LEFT JOIN battles b ON b.pair = p.id AND "
        "b.is_skipped = 0 LEFT JOIN votes v ON v.battle = b.id AND v.undoes IS NULL AND v.axis = ? WHERE p.id = ?",
        (study.criteria[0], pair),
    ).fetchone()
    return bool(gold) or (vote_counts if since_reserved else voted) < study.votes_per_pair


def _battles_of_rater(db: sqlite3.Connection, study: Study, rater: str) -> list[sqlite3.Row]:
    """All battles of a rater in a study, oldest first: whether they were voted on, and whether that vote stands."""
    return db.execute(
        "SELECT b.id, b.pair, b.is_swapped, b.is_skipped, v.id IS NOT NULL AS is_voted, "
        "v.id IS NOT NULL AND u.id IS NULL AS is_standing, v.id AS vote "
        "FROM battles b JOIN study_pairs p ON p.id = b.pair "
        "LEFT JOIN votes v ON v.battle = b.id AND v.undoes IS NULL AND v.axis = :axis "
        "LEFT JOIN votes u ON u.undoes = v.id WHERE b.asker = :who AND p.study = :study ORDER BY b.rowid",
        {"axis": study.criteria[0], "who": rater, "study": study.number},
    ).fetchall()


def _choose_pair(
    db: sqlite3.Connection,
    study: Study,
    table: PairTable,
    seen_pairs: Collection[int],
    position: int,
    rater: str,
    rng: np.random.Generator,
) -> int | None:
    """The number of the pair to ask next; None when each one that the rater has not seen has its votes."""
    is_new = ~np.isin(table.ids, list(seen_pairs))
    total = study.target or len(table.ids)
    golden = _plan_gold(study.number, rater, table.ids[table.is_gold], total).get(position)
    if golden is not None and golden not in seen_pairs:
        return golden
    counts, won = _count_votes(db, study, table)
    reserved = counts + _count_reserved(db, study, table)
    free = is_new & ~table.is_gold & (reserved < study.votes_per_pair)
    if not free.any():
        free = is_new & ~table.is_gold & (counts < study.votes_per_pair)
    if not free.any():
        return None
    possible = np.unique(table.meeting[free])
    if study.pairs == "adaptive":
        gains = ratings.expected_gain(won)[table.meetings[possible, 0], table.meetings[possible, 1]]
        chosen = possible[np.argmax(np.log(np.maximum(gains, 1e-12)) + rng.gumbel(size=len(gains)))]
    else:
        ordinary = ~table.is_gold
        vote_counts = np.bincount(table.meeting[ordinary], reserved[ordinary], minlength=len(table.meetings))[possible]
        chosen = rng.choice(possible[vote_counts == vote_counts.min()])
    places = np.flatnonzero(free & (table.meeting == chosen))
    votes_so_far = reserved[places]
    return int(
        table.ids[rng.choice(places[votes_so_far == votes_so_far.max()])]
    )  # pairs that were begun get all their votes first


def _plan_gold(study: int, rater: str, golden: np.ndarray, total: int) -> dict[int, int]:
    """Position in a rater's votes -> gold pair: at most half of the votes, spread evenly, in each part at a place
    by lot. The same for the same rater."""
    count = min(len(golden), total // 2)
    rng = np.random.default_rng([study, int(rater, 16)])
    chosen = rng.permutation(golden)[:count]
    edges = np.linspace(0, total, count + 1).astype(int)
    return {int(rng.integers(edges[n], edges[n + 1])): int(pair) for n, pair in enumerate(chosen)}


def _count_votes(db: sqlite3.Connection, study: Study, table: PairTable) -> tuple[np.ndarray, np.ndarray]:
    """(votes [N] of each pair on the first criterion; wins [n,n] of contestants over contestants)."""
    rows = db.execute(
        "SELECT p.id, b.is_swapped, v.choice, COUNT(*) AS n FROM study_pairs p "
        "JOIN battles b ON b.pair = p.id JOIN votes v ON v.battle = b.id AND v.axis = ? AND v.undoes IS NULL "
        "WHERE p.study = ? AND p.is_gold = 0 "
        "AND NOT EXISTS (SELECT 1 FROM votes u WHERE u.undoes = v.id) GROUP BY p.id, b.is_swapped, v.choice",
        (study.criteria[0], study.number),
    ).fetchall()
    counts, won, index = np.zeros(len(table.ids)), np.zeros((len(table.names),) * 2), table.index
    for row in rows:
        at = index[row["id"]]
        counts[at] += row["n"]
        if row["choice"] != "bad":
            one, other = table.one[at], table.other[at]
            score = ratings.SCORE_OF_CHOICE[row["choice"]]
            score = 1 - score if row["is_swapped"] else score
            won[one, other] += row["n"] * score
            won[other, one] += row["n"] * (1 - score)
    return counts, won


def _count_reserved(db: sqlite3.Connection, study: Study, table: PairTable) -> np.ndarray:
    """[N]: how many raters are looking at each pair just now."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - RESERVED_SECONDS))
    rows = db.execute(
        "SELECT p.id, COUNT(*) AS n FROM study_pairs p JOIN battles b ON b.pair = p.id WHERE p.study = ? "
        "AND b.is_skipped = 0 AND b.created > ? AND NOT EXISTS (SELECT 1 FROM votes v WHERE v.battle = b.id "
        "AND v.axis = ? AND v.undoes IS NULL) GROUP BY p.id",
        (study.number, since, study.criteria[0]),
    )
    counts, index = np.zeros(len(table.ids)), table.index
    for row in rows:
        counts[index[row["id"]]] = row["n"]
    return counts


def _insert_battle(db: sqlite3.Connection, pair: int, rater: str, is_swapped: bool) -> Battle:
    row = db.execute(
        "SELECT p.*, a.prompt FROM study_pairs p JOIN artefacts a ON a.id = p.one WHERE p.id = ?", (pair,)
    ).fetchone()
    left_key, right_key = ("other", "one") if is_swapped else ("one", "other")
    battle = secrets.token_urlsafe(16)
    db.execute(
        "INSERT INTO battles (id, left_artefact, right_artefact, left_sha256, right_sha256, asker, created, prompt, "
        "pair, is_swapped) VALUES (?,?,?,?,?,?,?,?,?,?)",
        (battle, row[left_key], row[right_key], row[f"{left_key}_sha256"], row[f"{right_key}_sha256"], rater,
         current_time(), row["prompt"], pair, int(is_swapped)),
    )  # fmt: skip
    return Battle(battle, pair, is_swapped)


def skip_battle(runs: Path, name: str, rater: str, battle: str) -> None:
    """Ask this rater no more about a battle. Raises BadInput for one of others, or with a vote."""
    with open_for_writing(runs) as db:
        _read_own_battle(db, read_study(db, name), rater, battle)
        if db.execute(f"SELECT 1 {votes.VOTES_OF_BATTLE}", (battle,)).fetchone():
            raise Refusal("this pair has its vote already; ask for the next one")
        db.execute("UPDATE battles SET is_skipped = 1 WHERE id = ?", (battle,))


def read_pair(runs: Path, pair: int) -> tuple[Pair, bool]:
    """(the two samples of a study's pair, `one` on the left; whether the right one is shown damaged)."""
    with store.read_index(runs) as db:
        row = db.execute("SELECT * FROM study_pairs WHERE id = ?", (pair,)).fetchone()
        sides = []
        for x in ("one", "other"):
            sample = db.execute(
                "SELECT a.*, runs.folder, runs.config FROM artefacts a JOIN runs ON runs.id = a.run WHERE a.id = ?",
                (row[x],),
            ).fetchone()
            config, who = parse_json(sample["config"], sample["folder"]), sample["contestant"]
            sides.append(
                Side(sample["id"], who, pipeline_of(config, who), f"{sample['folder']}/{sample['file']}",
                     row[f"{x}_sha256"], describe_settings(config, who), sample["modality"])
            )  # fmt: skip
    samples = Pair(sides[0], sides[1], votes.prompt_of(runs, sample), sample["folder"])
    return samples, row["one"] == row["other"]


def record_ballot(
    runs: Path,
    name: str,
    rater: str,
    battle: str,
    choices: Mapping[str, str],
    key: str,
    reason: str = "",
    dwell: Sequence[float] = (0, 0),
) -> dict:
    """Append one vote on each criterion and, once they are safely on disk, return {"battle", "done": the rater's votes
    so far}, and {"left", "right": contestants} where the study reveals them after each vote.

    key as in `votes.record_vote`: repeated calls with one key are one vote. Raises BadInput.
    """
    with open_for_writing(runs) as db:
        study = read_study(db, name)
        if not isinstance(choices, Mapping) or set(choices) != set(study.criteria):
            raise Refusal(f"choices: answer each of {', '.join(study.criteria)}")
        for axis in study.criteria:
            votes.check_choice(choices[axis])
        votes.check_key(key)
        reason, dwell = votes.check_reason(reason), votes.check_dwell(dwell)
        row = _read_own_battle(db, study, rater, battle)
        keys = [key, *(f"{key}.{n}" for n in range(1, len(study.criteria)))]
        vote_ids = [votes.find_row_of_key(db, k, battle, choices[a]) for k, a in zip(keys, study.criteria, strict=True)]
        if not all(vote_ids):
            if study.closed:
                raise Refusal("this study is closed and takes no more votes")
            if db.execute(f"SELECT 1 {votes.VOTES_OF_BATTLE}", (battle,)).fetchone():
                raise Refusal("this pair has its vote already; ask for the next one")
            db.executemany(
                "INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created, axis) "
                "VALUES (?,?,?,?,?,?,?,?,?)",
                [
                    (battle, choices[axis], k, reason, *dwell, rater, current_time(), axis)
                    for k, axis in zip(keys, study.criteria, strict=True)
                ],
            )
        vote_count = sum(r["is_standing"] for r in _battles_of_rater(db, study, rater))
    answer = {"battle": battle, "done": vote_count}
    return answer | reveal_sides(runs, row) if study.reveal == "each" else answer


def take_back(runs: Path, name: str, rater: str, battle: str, key: str) -> Battle:
    """Take a vote back, on all criteria, and ask about the pair again, as a new battle. Raises BadInput, also where the
    study has told the rater who was who. Idempotent by key."""
    votes.check_key(key)
    with open_for_writing(runs) as db:
        study = read_study(db, name)
        row = _read_own_battle(db, study, rater, battle)
        if study.reveal == "each":
            raise Refusal("you were told who these two are, so this vote stays")
        if study.closed:
            raise Refusal("this study is closed; its votes stay")
        vote_rows = db.execute(f"SELECT id {votes.VOTES_OF_BATTLE} ORDER BY id", (battle,)).fetchall()
        if not vote_rows:
            raise Refusal("this pair has no vote to take back")
        if votes.find_row_of_key(db, key, battle, None) is None:
            if db.execute("SELECT 1 FROM votes WHERE undoes = ?", (vote_rows[0]["id"],)).fetchone():
                raise Refusal("this vote has been taken back already")
            for n, vote in enumerate(vote_rows):
                db.execute(
                    "INSERT INTO votes (battle, key, reason, dwell_left, dwell_right, rater, created, undoes) "
                    "VALUES (?,?,'',0,0,?,?,?)",
                    (battle, f"{key}.{n}" if n else key, rater, current_time(), vote["id"]),
                )
            return _insert_battle(db, row["pair"], rater, bool(row["is_swapped"]))
        latest = db.execute(
            "SELECT id, pair, is_swapped FROM battles WHERE pair = ? AND asker = ? ORDER BY rowid DESC LIMIT 1",
            (row["pair"], rater),
        ).fetchone()
        return Battle(latest["id"], latest["pair"], bool(latest["is_swapped"]))


def _read_own_battle(db: sqlite3.Connection, study: Study, rater: str, battle: str) -> sqlite3.Row:
    """A battle of this study and this rater; of others it says what it says of none."""
    row = votes.read_battle(db, battle)
    pair = db.execute("SELECT study FROM study_pairs WHERE id = ?", (row["pair"],)).fetchone()
    if pair is None or pair["study"] != study.number or row["asker"] != rater:
        raise Refusal("battle: there is no such pair; ask for one first")
    return row


def reveal_sides(runs: Path, row: sqlite3.Row) -> dict:
    """{"left", "right": {"contestant": its name and settings}} of a battle."""
    pair, is_damaged = read_pair(runs, row["pair"])
    one, other = pair.left.label, pair.right.label + (", damaged on purpose: a check" if is_damaged else "")
    names = (other, one) if row["is_swapped"] else (one, other)
    return {side: {"contestant": name} for side, name in zip(("left", "right"), names, strict=True)}
