"""Text files of any kind that people keep documents in: plain, Markdown, reStructuredText, HTML, PDF, Word.

PDF and Word need the extra `skillgraft[documents]` (pypdf, python-docx). Nothing in a file is run, fetched or followed.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from skillgraft.errors import DataError

_BLOCKS = {
    *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer"),
    *("form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_UNSEEN = {"script", "style", "template", "noscript", "svg", "math", "title"}
_UNPACKED_BYTES = 1 << 30
"""Most bytes that a Word file may unpack to: more is no document, but made to fill memory."""

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


def read_text(file: Path) -> str:
    """Return the text of a UTF-8 file, or of UTF-16 with a byte order mark; line ends become line feeds.

    Raises `DataError` for one that cannot be read, is in another encoding, or is binary.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not {'UTF-16' if wide else 'UTF-8'} text ({error.reason} at byte {error.start}); convert it "
            "(text of older Windows: iconv -f windows-1252 -t utf-8) or remove it"
        ) from error
    if "\0" in text:
        at = text.index("\0")
        raise DataError(f"{file}: not text (a zero byte after {at} characters); convert it to UTF-8 text or remove it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_document_file(file: Path) -> tuple[str, str]:
    """Return (title, text) of a file with one document: its own title where it has one, else its name."""
    title, text = READERS[file.suffix.lower()](file)
    return title or file.stem.replace("_", " ").replace("-", " "), text.strip()


def whole_text(file: Path) -> str:
    """Return the text of a file with one document, of Markdown and plain text as it stands."""
    return read_text(file) if file.suffix.lower() in {".md", ".txt"} else read_document_file(file)[1]


def is_document_file(path: Path) -> bool:
    """Return whether a path's name says that it holds one document."""
    return path.suffix.lower() in READERS


def document_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders that hold one document each, by path."""
    return [file for file in _files(folder) if is_document_file(file) and can_read(file)]


def passed_over(folder: Path) -> str:
    """Return what of a folder is passed over, as `.png 2, .pptx 1`; "" for a file.

    What systems and editors leave is not counted, nor questions.
    """
    others = [file for file in _files(folder) if not (is_document_file(file) and can_read(file))]
    counted = [file for file in others if file.name.lower() not in _LEFT_BY_SYSTEMS and file.stem != "questions"]
    counts = Counter(file.suffix.lower() or file.name for file in counted)
    return ", ".join(f"{suffix} {count}" for suffix, count in sorted(counts.items()))


def can_read(file: Path) -> bool:
    """Return whether the package that reads such a file is installed."""
    package = _PACKAGES.get(file.suffix.lower())
    return package is None or importlib.util.find_spec(package) is not None


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith((".", "~$", "#")) or part in ("__MACOSX", "__pycache__") for part in parts)
        if not hidden and not file.name.endswith("~") and file.is_file():
            yield file


def _plain(file: Path) -> tuple[str, str]:
    return "", read_text(file)


def _markdown(file: Path) -> tuple[str, str]:
    text = read_text(file).strip()
    first, _, rest = text.partition("\n")
    return (first[2:].strip(), rest) if first.startswith("# ") else ("", text)


def _restructured(file: Path) -> tuple[str, str]:
    """Take a first line that is underlined, and perhaps overlined, as the title."""
    text = read_text(file).strip()
    match = re.match(r"(?:([=\-~^\"*#+])\1+\n)?[ \t]*(\S[^\n]*)\n([=\-~^\"*#+])\3{2,}[ \t]*(?:\n|$)", text)
    return (match[2].strip(), text[match.end() :]) if match else ("", text)


class _Html(HTMLParser):
    """Collects what a browser would show, a line for each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            while self._unseen.pop() != tag:
                pass
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(re.sub(r"\s+", " ", data))
        elif self._unseen == ["title"]:
            self.title.append(data)


def _html(file: Path) -> tuple[str, str]:
    parser = _Html()
    try:
        parser.feed(read_text(file))
        parser.close()
    except (AssertionError, ValueError) as error:
        raise DataError(f"{file}: not HTML that can be read ({error}); mend it, or save it as text") from error
    lines = [" ".join(line.split()) for line in "".join(parser.parts).split("\n")]
    return " ".join("".join(parser.title).split()), re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _pdf(file: Path) -> tuple[str, str]:
    _require(file)
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings go to the terminal, without the file's name
    try:
        with file.open("rb") as stream:
            reader = pypdf.PdfReader(stream)
            if reader.is_encrypted and not reader.decrypt(""):
                raise DataError(f"{file}: protected by a password; save it without one, or remove it")
            text = "\n\n".join(page.extract_text() for page in reader.pages)
    except DataError:
        raise
    except Exception as error:  # a file from elsewhere makes its parser fail in any way
        raise DataError(f"{file}: not a PDF that can be read ({_short(error)}); repair or remove it") from error
    if not text.strip():
        raise DataError(f"{file}: holds no text, as a scan does; recognize its text (OCR) first, or remove it")
    return "", _clean(text)


def _word(file: Path) -> tuple[str, str]:
    _require(file)
    import docx
    from docx.table import Table

    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _UNPACKED_BYTES:
            raise DataError(f"{file}: unpacks to {unpacked} bytes, expected at most {_UNPACKED_BYTES}; remove it")
        blocks = docx.Document(str(file)).iter_inner_content()
        lines = []
        for block in blocks:
            if isinstance(block, Table):
                lines += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
            else:
                lines.append(block.text)
    except DataError:
        raise
    except Exception as error:  # a file from elsewhere makes its parser fail in any way
        raise DataError(f"{file}: not a Word file that can be read ({_short(error)}); save it anew") from error
    return "", _clean("\n".join(lines))


def _require(file: Path) -> None:
    if not can_read(file):
        raise DataError(
            f"{file}: reading {file.suffix} needs the package {_PACKAGES[file.suffix.lower()]}: "
            "pip install 'skillgraft[documents]'"
        )


def _clean(text: str) -> str:
    """Return `text` without what fonts without a character table leave: zero characters and lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


READERS: dict[str, Callable[[Path], tuple[str, str]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
    ".rst": _restructured,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _word,
}
"""Readers of one document a file by the file's suffix, each giving (title or "", text)."""

_PACKAGES = {".pdf": "pypdf", ".docx": "docx"}

DOCUMENT_KINDS = ", ".join(READERS)
