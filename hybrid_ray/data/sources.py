"""Where text comes from with no download: the source of the installed Python, its packages, or a folder."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hybrid_ray.errors import ConfigError

__all__ = ["Document", "SourceFile", "list_files", "read_documents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file of a corpus. ``name`` is its path below its root (with /): the same on every machine."""

    name: str
    path: str

    @property
    def stamp(self) -> bytes:
        """Changes when the file does, as far as size and time of change tell."""
        seen = os.stat(self.path)
        return f"{self.path} {seen.st_size} {seen.st_mtime_ns}\n".encode("utf-8", errors="surrogateescape")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The text of one file (valid UTF-8) and a hash of its name and text."""

    name: str
    text: bytes
    digest: bytes


def list_files(corpus: str) -> list[SourceFile]:
    """All files of a corpus, by name.

    Raises:
        ConfigError: the folder is missing.
    """
    paths = sysconfig.get_paths()
    if corpus in ("stdlib", "installed"):
        found = [*_python_files("stdlib", Path(paths["stdlib"]))]
        if corpus == "installed":
            for packages in sorted({Path(paths["purelib"]), Path(paths["platlib"])}):
                found += _python_files("site-packages", packages)
    else:
        root = Path(corpus).expanduser()
        if not root.is_dir():
            raise ConfigError(
                f"data.corpus is {corpus!r} but there is no such folder: give a folder of text files, or one of "
                "stdlib, installed, random"
            )
        found = [*_walk("", root)]
    return sorted(found, key=lambda file: file.name)


def _walk(prefix: str, root: Path) -> Iterator[SourceFile]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "." and name not in ("__pycache__", "site-packages")]
        below = os.path.relpath(folder, root)
        for name in names:
            if name[0] != ".":
                parts = (prefix, *Path(below).parts, name)
                yield SourceFile(name="/".join(part for part in parts if part), path=os.path.join(folder, name))


def _python_files(prefix: str, root: Path) -> Iterator[SourceFile]:
    return (file for file in _walk(prefix, root) if file.name.endswith(".py"))


def _is_text(content: bytes) -> bool:
    try:
        return b"\0" not in content and bool(content.decode("utf-8").strip())
    except UnicodeDecodeError:
        return False


def read_documents(files: Sequence[SourceFile], *, max_bytes: int | None = None) -> list[Document]:
    """The files' text in the order of their hashes, which is a fixed shuffle of them.

    Files that are empty or not UTF-8 are left out, as are second copies of the same content: a copy could land in
    training while the first is held out. ``max_bytes`` keeps as many files, in that order, as fit into it.
    """
    seen: set[bytes] = set()
    documents = []
    for file in files:
        content = Path(file.path).read_bytes()
        hashed = sha256(content).digest()
        if hashed not in seen and _is_text(content):
            seen.add(hashed)
            digest = sha256(file.name.encode("utf-8", errors="surrogateescape") + b"\0" + hashed).digest()
            documents.append(Document(name=file.name, text=content, digest=digest))
    documents.sort(key=lambda document: document.digest)
    return documents if max_bytes is None else list(_fitting(documents, max_bytes))


def _fitting(documents: Sequence[Document], max_bytes: int) -> Iterator[Document]:
    left = max_bytes
    for document in documents:
        if len(document.text) <= left:
            left -= len(document.text)
            yield document
