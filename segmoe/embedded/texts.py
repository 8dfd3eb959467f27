"""The four sources of the embedded model's text, and which documents are held out. Training is train.py.

The sources come as Debian packages and with Python itself, so that anybody can rebuild them:

    apt-get install --no-install-recommends \\
        r-cran-janeaustenr sword-text-sparv libsword-utils metamath-databases

| context | source | licence | a document is |
|---|---|---|---|
| english | Jane Austen's six novels (janeaustenr 1.0.0) | public domain | a chapter |
| spanish | Reina-Valera 1909 (sword-text-sparv 2.60) | public domain | a chapter |
| maths | set.mm: hypotheses and assertions, no comments or proofs (28-Dec-2020) | CC0 | 30 theorems |
| python | the standard library of CPython 3.11 | PSF-2.0 | a module |
"""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONTEXTS = ("english", "spanish", "maths", "python")
SET_MM = Path("/usr/share/metamath/databases/set.mm")
HELD_OUT_FRACTION = 1 / 12


class Document(NamedTuple):
    """A piece of text that is wholly trained on or wholly held out."""

    id: str
    context: str
    text: str

    @property
    def held_out(self) -> bool:
        """Decide by the document's name alone, so that no order and no seed matters."""
        digest = hashlib.sha256(self.id.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_FRACTION


def documents() -> Iterator[Document]:
    """All documents of all contexts, in a fixed order."""
    yield from _english()
    yield from _spanish()
    yield from _maths()
    yield from _python()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _english() -> Iterator[Document]:
    script = 'b <- janeaustenr::austen_books(); cat(paste0(b$book, "\\t", b$text), sep = "\\n")'
    books: dict[str, list[str]] = {}
    for line in _run("Rscript", "-e", script).split("\n"):
        book, _, text = line.partition("\t")
        books.setdefault(book, []).append(text)
    for book, lines in books.items():
        if not book:
            continue
        chapters = re.split(r"\n(?:CHAPTER|Chapter) [0-9IVXL]+\.?\n", "\n".join(lines))
        for number, chapter in enumerate(chapters[1:], start=1):
            paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", chapter)]
            text = "\n".join(p for p in paragraphs if p)
            yield Document(f"english/{book}/{number}", "english", text)


def _spanish() -> Iterator[Document]:
    chapters: dict[str, list[str]] = {}
    for entry in _run("mod2imp", "spaRV1909eb").split("$$$"):
        name, _, body = entry.partition("\n")
        match = re.fullmatch(r"(.+) ([1-9]\d*):([1-9]\d*)", name.strip())
        if match is None:
            continue
        body = re.sub(r"<note\b.*?</note>|<title\b.*?</title>", "", body, flags=re.DOTALL)
        verse = " ".join(html.unescape(re.sub(r"<[^>]+>", "", body)).split())
        if verse:
            chapters.setdefault(f"{match[1]} {match[2]}", []).append(verse)
    for name, verses in chapters.items():
        yield Document(f"spanish/{name}", "spanish", "\n".join(verses))


def _maths() -> Iterator[Document]:
    source = re.sub(r"\$\(.*?\$\)", " ", SET_MM.read_text(), flags=re.DOTALL)
    theorem: list[str] = []
    theorems: list[str] = []
    for label, kind, body in re.findall(r"(\S+)\s+\$([eap])\s+(.*?)\$\.", source, flags=re.DOTALL):
        statement = " ".join(body.split("$=")[0].split())
        if not statement.startswith("|-"):
            continue
        theorem.append(f"{label} ${kind} {statement}")
        if kind == "e":
            continue
        theorems.append("\n".join(theorem))
        theorem = []
    for first in range(0, len(theorems), 30):
        yield Document(f"maths/set.mm/{first}", "maths", "\n".join(theorems[first : first + 30]))


def _python() -> Iterator[Document]:
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if left_out & set(name.parts) or "_sysconfigdata" in name.name or "config-" in str(name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) > 200 and str(Path.home()) not in text:
            yield Document(f"python/{name}", "python", text)
