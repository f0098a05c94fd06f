"""Secrets stay out of what is printed and written. Whatever a server says, and whatever is said of an address, goes
through `redact`."""

from __future__ import annotations

import re

MASK = "***"
SHORTEST = 4  # letters of a secret that is masked wherever it stands; a shorter one would mask half of any text
_USERINFO = re.compile(r"(?<=://)[^/?#\s@]*@")
_CREDENTIALS = re.compile(r"\b(bearer|basic)(\s+|%20)(?=\S*[\d_.~+/=-])[^\s\"'<>,;]{6,}", re.IGNORECASE)
_HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"'<>,;]+", re.IGNORECASE)
_secrets: set[str] = set()  # of this process


def remember_secret(secret: str) -> None:
    """From now on `redact` masks this text."""
    if len(secret) >= SHORTEST:
        _secrets.add(secret)


def redact(text: str) -> str:
    """`text` without the secrets that were remembered, passwords inside addresses, and bearer or basic credentials.

    Before it is cut short: half a secret is not known as one.
    """
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, MASK)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _CREDENTIALS.sub(rf"\1\2{MASK}", text)
    return _USERINFO.sub(f"{MASK}@", text)
