"""Who may log in, and as what: admins, who may do everything, and raters, who vote in studies and see nothing else."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_text, split_lines

ADMIN, RATER = "admin", "rater"


@dataclass(frozen=True)
class Users:
    """Names and passwords, by role."""

    admins: Mapping[str, str] = field(default_factory=dict, repr=False)
    raters: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def passwords(self) -> dict[str, str]:
        return {**self.admins, **self.raters}

    def role_of(self, name: str | None) -> str:
        """ "admin", "rater", or "" for nobody."""
        return ADMIN if name in self.admins else RATER if name in self.raters else ""

    def check_password(self, name: str, password: str) -> bool:
        """Whether they may log in. It takes as long for a name that isn't there."""
        password_on_file = self.passwords.get(name, "")
        return hmac.compare_digest(password_on_file.encode(), password.encode()) and bool(password_on_file)


def read_users(file: Path, option: str = "--auth") -> dict[str, str]:
    """Name -> password of a file with a line `name:password` each. Raises BadInput."""
    try:
        lines = [line for line in split_lines(read_text(file)) if line.strip()]
    except BadInput as error:
        raise BadInput(f"{option}: {error}; give a text file with name:password on each line") from None
    pairs = [line.split(":", 1) for line in lines]
    if not pairs or any(len(pair) < 2 or not all(pair) for pair in pairs):
        raise BadInput(f"{option}: {file} must hold name:password on each line, both not empty")
    names = [name.strip() for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{option}: {file} has {repeated[0]!r} twice; keep one line of it")
    return dict(zip(names, (password for _, password in pairs), strict=True))


def read_roles(auth: Path | None, raters: Path | None) -> Users:
    """The users of an app: `auth` lists its admins, `raters` those who only vote. Raises BadInput."""
    if auth is None:
        if raters is not None:
            raise BadInput("--raters: roles need admins who log in too; give --auth FILE with theirs")
        return Users()
    users = Users(read_users(auth), read_users(raters, "--raters") if raters else {})
    if twofold := sorted(set(users.admins) & set(users.raters)):
        raise BadInput(f"--raters: {twofold[0]!r} is an admin in --auth as well; keep one of the two")
    return users
