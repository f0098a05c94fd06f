"""Who votes in studies. A rater's page is known by a token in a cookie, of which the index keeps a digest: so that a
server that starts again knows everybody, and whoever reads the index can't vote for others."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from workbench.core.text import one_line
from workbench.feedback.studies import Study
from workbench.feedback.votes import Refusal, clean_text, current_time, open_for_writing, pseudonym_of
from workbench.runs import store

MAX_NAME = 60  # letters


@dataclass(frozen=True)
class Rater:
    """One person in one study."""

    id: str  # the pseudonym under which votes are kept
    name: str  # by which the study's owner knows them


def digest_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def enter_with_name(runs: Path, study: Study, name: str) -> str:
    """The token of a new rater of an open study: two people who give one name are two raters. Raises Refusal."""
    name = _check_name(name)
    token = secrets.token_urlsafe(24)
    with open_for_writing(runs) as db:
        _add_session(db, study, token, pseudonym_of(token), "")
        _add_rater(db, study, pseudonym_of(token), name)
    return token


def enter_with_login(runs: Path, study: Study, login: str) -> str:
    """The token of somebody who has logged in, and is the same rater wherever they do so."""
    token = secrets.token_urlsafe(24)
    with open_for_writing(runs) as db:
        _add_session(db, study, token, pseudonym_of(login), login)
        _add_rater(db, study, pseudonym_of(login), login)
    return token


def find_rater(runs: Path, study: Study, token: str) -> tuple[Rater, str] | None:
    """(the rater that a token belongs to, their login or ""), None where it belongs to nobody in this study."""
    with store.read_index(runs) as db:
        row = db.execute(
            "SELECT s.rater, s.login, r.name FROM rater_sessions s JOIN study_raters r ON r.study = s.study AND "
            "r.rater = s.rater WHERE s.digest = ? AND s.study = ?",
            (digest_token(token), study.number),
        ).fetchone()
    return (Rater(row["rater"], row["name"]), row["login"]) if row else None


def rater_of_login(runs: Path, study: Study, login: str) -> Rater:
    """The rater that somebody is who is logged in."""
    rater = Rater(pseudonym_of(login), login)
    with open_for_writing(runs) as db:
        _add_rater(db, study, rater.id, login)
    return rater


def end_session(runs: Path, token: str) -> None:
    with open_for_writing(runs) as db:
        db.execute("DELETE FROM rater_sessions WHERE digest = ?", (digest_token(token),))


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not (name := one_line(clean_text(name, "name")).strip()) or len(name) > MAX_NAME:
        raise Refusal(f"name: give your name, up to {MAX_NAME} letters")
    return name


def _add_session(db: sqlite3.Connection, study: Study, token: str, rater: str, login: str) -> None:
    db.execute(
        "INSERT INTO rater_sessions (digest, study, rater, login, created) VALUES (?,?,?,?,?)",
        (digest_token(token), study.number, rater, login, current_time()),
    )


def _add_rater(db: sqlite3.Connection, study: Study, rater: str, name: str) -> None:
    db.execute(
        "INSERT INTO study_raters (study, rater, name, created) VALUES (?,?,?,?) ON CONFLICT DO NOTHING",
        (study.number, rater, name, current_time()),
    )
