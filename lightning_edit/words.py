"""Word boundaries in any script, for finding subjects and answers in texts."""

from __future__ import annotations

import itertools

import regex

_SEGMENTS = regex.compile(r"(?w)\b")
"""Boundaries of Unicode Standard Annex #29; in scripts without spaces every character cluster is a word."""
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,:٫٬'’]\p{Nd}+)+")
"""A number or a time of day, whose inner marks are no word boundaries."""
_MARK = regex.compile(r"[.:·'’‘]")
"""Marks that Annex #29 counts as part of the word around them, such as in "France's" and "Rome.The"."""
_KOREAN = regex.compile(r"\p{Script=Hangul}")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text contains half of a surrogate pair, which cannot be encoded as UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def word_boundaries(text: str) -> frozenset[int]:
    """Returns the character positions in a text where a word can begin or end.

    These are the boundaries of Unicode Standard Annex #29, and both sides of full stops, colons and apostrophes between
    letters: "France" is found in "France's". Numbers have no inner boundaries: 3 is not found in 3.5, 3,500 or 3:30.
    """
    places = {match.start() for match in _SEGMENTS.finditer(text)} | {0, len(text)}
    for match in _MARK.finditer(text):
        places |= {match.start(), match.end()}
    for match in _NUMBER.finditer(text):
        places -= set(range(match.start() + 1, match.end()))
    return frozenset(places)


def find_words(text: str, phrase: str) -> list[tuple[int, int]]:
    """Finds a phrase in a text as whole words, and returns the start and end of each match in characters.

    In Korean, particles follow a word without a space, so a match may end inside a word.

    Args:
        text: The text.
        phrase: The phrase, not empty.
    """
    boundaries = word_boundaries(text)
    spans, start = [], text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        has_particle = bool(_KOREAN.match(text[end : end + 1]) and _KOREAN.match(phrase[-1]))
        if start in boundaries and (end in boundaries or has_particle):
            spans.append((start, end))
        start = text.find(phrase, start + 1)
    return spans


def words(text: str) -> list[str]:
    """Splits a text into words and punctuation marks (Unicode Standard Annex #29), without white space."""
    places = sorted({match.start() for match in _SEGMENTS.finditer(text)} | {0, len(text)})
    segments = (text[start:end].strip() for start, end in itertools.pairwise(places))
    return [segment for segment in segments if segment]
