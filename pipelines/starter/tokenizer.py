"""A CLIP tokenizer in which each word of a small language is one token."""

from __future__ import annotations

import string
from collections.abc import Sequence

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 16


def _apply_merges(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: the earliest merge first, wherever it fits."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [(rank[p], i) for i, p in enumerate(zip(pieces, pieces[1:], strict=False)) if p in rank]
        if not pairs:
            return pieces
        best, _ = min(pairs)
        head, tail = merges[best]
        out: list[str] = []
        for piece in pieces:
            if out and out[-1] == head and piece == tail:
                out[-1] = head + tail
            else:
                out.append(piece)
        pieces = out


def new_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """Letters, and merges appended until every word is one token (appending cannot break a word that already is)."""
    merges: list[tuple[str, str]] = []
    for word in words:
        while len(pieces := _apply_merges(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    base = [c + end for c in string.ascii_lowercase + string.digits + ",." for end in ("", "</w>")]
    entries = dict.fromkeys([*base, *(a + b for a, b in merges), START, END])
    vocab = {token: i for i, token in enumerate(entries)}
    # the pairs go on to tokenizers' BPE, which takes nothing else; the annotation knows only a file and its lines
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # type: ignore[arg-type]
