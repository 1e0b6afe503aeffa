"""Words of a text in any script: one definition for metrics, rewards, filters, retrieval and the report.

Normalization follows the SQuAD v1.1 evaluation (Rajpurkar et al., arXiv 1606.05250, section 6.1): lower case, no
punctuation, no articles, single spaces. Departures, none of which changes a score of plain English: Unicode is
brought to one form (NFKC), so that composed and decomposed accents and full-width digits are equal; digits of every
script are 0 to 9; beside ASCII punctuation any Unicode punctuation is dropped, and so are invisible characters. In
scripts that put no spaces between words each character is a word, as the Chinese and Japanese sets of MLQA and CMRC
are scored (arXiv 1910.07475, 1810.07366); metrics count Korean by syllables too, as KorQuAD does (arXiv 1909.07005),
since particles stand at the ends of its words.
"""

from __future__ import annotations

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_SPACES = (  # Thai, Lao, Tibetan, Myanmar, Khmer, Tai and New Tai Lue, kana, Han
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\uac00-\ud7ff"
_WORD = re.compile(f"[{_WITHOUT_SPACES}]|[^\\s{_WITHOUT_SPACES}]+")
_UNIT = re.compile(f"[{_WITHOUT_SPACES}{_HANGUL}]|[^\\s{_WITHOUT_SPACES}{_HANGUL}]+")
_SIGN = re.compile(f"[{_WITHOUT_SPACES}{_HANGUL}]|[^\\W{_WITHOUT_SPACES}{_HANGUL}]+|[^\\w\\s]")


def normalize(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, words separated by single spaces."""
    return " ".join(_ARTICLES.sub(" ", _letters(_unified(text).lower())).split())


def words(text: str) -> list[str]:
    """Return the normalized words of `text`, each character of a script without spaces as one."""
    return _WORD.findall(normalize(text))


def count_words(text: str) -> int:
    """Return how many words `text` has as it stands, each character of a script without spaces as one."""
    return len(_WORD.findall(text))


def units(text: str, kept: str = "") -> list[str]:
    """Return what metrics compare of `text`: its normalized words, Korean ones by syllables.

    `kept` says what of articles, signs and case counts: "" none; "articles" they and case; "signs" all.
    """
    if kept == "signs":
        return _SIGN.findall(_unified(text))
    return _UNIT.findall(_letters(_unified(text)) if kept == "articles" else normalize(text))


def what_counts(answer: str) -> str:
    """Return the least that must be kept of `answer` so that anything is left: the `kept` of `units`.

    "" for almost all; "articles" for "A" or "The The"; "signs" for "+" or "?".
    """
    return next((kept for kept in ("", "articles") if units(answer, kept)), "signs")


def comparable(text: str) -> str:
    """Return a text by which equal questions or answers are known: normalized, but never to nothing."""
    return normalize(text) or " ".join(units(text, what_counts(text)))


def _unified(text: str) -> str:
    """Return `text` in NFKC with digits 0 to 9 and without invisible characters, such as soft hyphens and joiners."""
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    letters = (c for c in text if unicodedata.category(c) != "Cf")
    return "".join(c if (digit := unicodedata.decimal(c, None)) is None else str(digit) for c in letters)


def _letters(text: str) -> str:
    return "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
