"""The tables of the index over all runs. Each step brings an index from one version to the next, so steps are only
added at the end, and none is changed.

A study's pair is of `one` and `other`: two samples, or, where both are one artefact, a sample and its damaged copy. Of
a gold pair, whose answer is known, `one` is the better. A battle is a pair as one rater sees it; `is_swapped`: `other`
is on the left. A vote on several criteria is a row for each `axis`, under one key and its extensions.
"""

SCHEMA = (
    """
    CREATE TABLE runs (id INTEGER PRIMARY KEY, folder TEXT UNIQUE NOT NULL, name TEXT NOT NULL, created TEXT NOT NULL,
                       status TEXT NOT NULL, pipeline TEXT NOT NULL, config TEXT NOT NULL);
    CREATE TABLE artefacts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id), contestant TEXT NOT NULL,
                       position INTEGER NOT NULL, k INTEGER NOT NULL, prompt TEXT NOT NULL, seed INTEGER NOT NULL,
                       file TEXT NOT NULL, sha256 TEXT NOT NULL, UNIQUE (run, contestant, position, k));
    CREATE TABLE scores (artefact INTEGER NOT NULL REFERENCES artefacts(id), reward TEXT NOT NULL,
                       version TEXT NOT NULL, value REAL, PRIMARY KEY (artefact, reward, version));
    CREATE TABLE costs (run INTEGER NOT NULL REFERENCES runs(id), contestant TEXT NOT NULL, method TEXT NOT NULL,
                       samples INTEGER NOT NULL, nfe INTEGER NOT NULL, seconds REAL NOT NULL,
                       PRIMARY KEY (run, contestant));
    """,
    """
    CREATE TABLE battles (id TEXT PRIMARY KEY, left_artefact INTEGER NOT NULL REFERENCES artefacts(id),
                       right_artefact INTEGER NOT NULL REFERENCES artefacts(id), left_sha256 TEXT NOT NULL,
                       right_sha256 TEXT NOT NULL, asker TEXT NOT NULL, created TEXT NOT NULL, prompt TEXT NOT NULL);
    CREATE INDEX battles_by_asker ON battles (asker, left_artefact, right_artefact);
    CREATE TABLE votes (id INTEGER PRIMARY KEY, battle TEXT NOT NULL REFERENCES battles(id), choice TEXT,
                       key TEXT UNIQUE NOT NULL, reason TEXT NOT NULL,
                       dwell_left REAL NOT NULL, dwell_right REAL NOT NULL,
                       rater TEXT NOT NULL, created TEXT NOT NULL, undoes INTEGER UNIQUE REFERENCES votes(id),
                       CHECK ((choice IS NULL) = (undoes IS NOT NULL)),
                       CHECK (choice IN ('left', 'right', 'tie', 'bad')));
    CREATE UNIQUE INDEX one_vote_a_battle ON votes (battle) WHERE undoes IS NULL;
    """,
    """
    ALTER TABLE artefacts ADD COLUMN inputs TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE artefacts ADD COLUMN modality TEXT NOT NULL DEFAULT '';
    CREATE TABLE studies (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, created TEXT NOT NULL, closed TEXT,
                       settings TEXT NOT NULL);
    CREATE TABLE study_pairs (id INTEGER PRIMARY KEY, study INTEGER NOT NULL REFERENCES studies(id),
                       one INTEGER NOT NULL REFERENCES artefacts(id), other INTEGER NOT NULL REFERENCES artefacts(id),
                       one_sha256 TEXT NOT NULL, other_sha256 TEXT NOT NULL, is_gold INTEGER NOT NULL DEFAULT 0,
                       UNIQUE (study, one, other, is_gold));
    CREATE TABLE study_raters (study INTEGER NOT NULL REFERENCES studies(id), rater TEXT NOT NULL, name TEXT NOT NULL,
                       created TEXT NOT NULL, PRIMARY KEY (study, rater));
    CREATE TABLE rater_sessions (digest TEXT PRIMARY KEY, study INTEGER REFERENCES studies(id), rater TEXT NOT NULL,
                       login TEXT NOT NULL, created TEXT NOT NULL);
    ALTER TABLE battles ADD COLUMN pair INTEGER REFERENCES study_pairs(id);
    ALTER TABLE battles ADD COLUMN is_swapped INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE battles ADD COLUMN is_skipped INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX battles_by_pair ON battles (pair, asker) WHERE pair IS NOT NULL;
    ALTER TABLE votes ADD COLUMN axis TEXT NOT NULL DEFAULT 'overall';
    DROP INDEX one_vote_a_battle;
    CREATE UNIQUE INDEX one_vote_an_axis ON votes (battle, axis) WHERE undoes IS NULL;
    """,
)
