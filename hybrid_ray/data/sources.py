"""Sources of text that need no download: the installed Python's library, its packages, or a user's folder."""

import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hybrid_ray.errors import ConfigError

__all__ = ["SHIPPED", "Document", "SourceFile", "list_files", "read_documents"]

SHIPPED = ("stdlib", "installed")  # corpora that come with Python and its packages; any other name is a user's folder
SMALLEST_FOLDER = 8  # files; the three held-out splits need a file each and take at most 40 % of all files
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file of a corpus. ``name`` is its path relative to the root (with /), so it is the same on every machine.

    ``size`` and ``changed`` (modification time in nanoseconds) are those at the time of listing.
    """

    name: str
    path: str
    size: int
    changed: int

    @property
    def stamp(self) -> bytes:
        """A key that changes with the file's path, size or modification time."""
        return f"{self.path} {self.size} {self.changed}\n".encode("utf-8", errors="surrogateescape")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The text of one file (valid UTF-8, without a byte-order mark) and a hash of its name and text."""

    name: str
    text: bytes
    digest: bytes


def list_files(corpus: str) -> tuple[list[SourceFile], Counter[str]]:
    """All regular files of a corpus, sorted by name, and the number of skipped entries by cause.

    A link to a file counts as the file; a link to a folder is not followed.

    Raises:
        ConfigError: the folder is missing or is not a folder.
    """
    paths, left_out = sysconfig.get_paths(), Counter[str]()
    if corpus in SHIPPED:
        found = [*_python_files("stdlib", Path(paths["stdlib"]))]
        if corpus == "installed":
            for packages in sorted({Path(paths["purelib"]), Path(paths["platlib"])}):
                found += _python_files("site-packages", packages)
    else:
        found = [*_walk("", _folder(corpus), left_out)]
    return sorted(found, key=lambda file: file.name), left_out


def _folder(corpus: str) -> Path:
    try:
        root = Path(corpus).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"data.corpus is {corpus!r} but there is no home folder to replace its ~: give the whole path"
        ) from error
    if root.is_dir():
        return root
    if root.exists():
        raise ConfigError(
            f"data.corpus is {corpus!r} but that is a file and must be a folder: split its text into {SMALLEST_FOLDER} "
            "files or more in a folder of their own, since no held-out text may come from a file that training reads"
        )
    raise ConfigError(
        f"data.corpus is {corpus!r} but there is no such folder: give a folder of text files, or one of stdlib, "
        "installed, random"
    )


def _walk(prefix: str, root: Path, left_out: Counter[str]) -> Iterator[SourceFile]:
    def unreadable(_: OSError) -> None:
        left_out["folder that cannot be read"] += 1

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if name[0] != "." and name not in ("__pycache__", "site-packages")]
        left_out["link to a folder"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        below = os.path.relpath(folder, root)
        for name in names:
            if name[0] == ".":
                continue
            path = os.path.join(folder, name)
            seen = _regular(path, left_out)
            if seen is not None:
                parts = (prefix, *Path(below).parts, name)
                name_below = "/".join(part for part in parts if part)
                yield SourceFile(name=name_below, path=path, size=seen.st_size, changed=seen.st_mtime_ns)


def _regular(path: str, left_out: Counter[str]) -> os.stat_result | None:
    """``os.stat`` of a readable regular file; for anything else, count the cause and return None.

    Nothing is opened, because opening a named pipe waits for a writer.
    """
    try:
        seen = os.stat(path)
    except OSError:
        left_out["broken link" if os.path.islink(path) else "file that cannot be read"] += 1
        return None
    if not stat.S_ISREG(seen.st_mode):
        left_out["pipe, socket or device"] += 1
        return None
    if not os.access(path, os.R_OK):
        left_out["file that cannot be read"] += 1
        return None
    return seen


def _python_files(prefix: str, root: Path) -> Iterator[SourceFile]:
    return (file for file in _walk(prefix, root, Counter()) if file.name.endswith(".py"))


def read_documents(files: Sequence[SourceFile], *, max_bytes: int | None = None) -> tuple[list[Document], Counter[str]]:
    """The text of the files, ordered by hash (a fixed shuffle), and the number of skipped files by cause.

    Files that are empty or not UTF-8 are skipped, and so are duplicates: one copy could be trained on while the other
    is held out. ``max_bytes`` limits the total size: in that order, each file that still fits is kept. The files that
    do not fit are not counted as skipped.
    """
    seen: set[bytes] = set()
    documents, left_out = [], Counter[str]()
    for file in files:
        try:
            content = Path(file.path).read_bytes().removeprefix(BYTE_ORDER_MARK)
        except OSError:
            left_out["file that cannot be read"] += 1
            continue
        hashed = sha256(content).digest()
        cause = "copy of another file" if hashed in seen else _no_text(content)
        if cause:
            left_out[cause] += 1
            continue
        seen.add(hashed)
        digest = sha256(file.name.encode("utf-8", errors="surrogateescape") + b"\0" + hashed).digest()
        documents.append(Document(name=file.name, text=content, digest=digest))
    documents.sort(key=lambda document: document.digest)
    return (documents if max_bytes is None else list(_fitting(documents, max_bytes))), left_out


def _no_text(content: bytes) -> str | None:
    """The reason why the content is not usable text, or None."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return "file that is not UTF-8 text"
    if b"\0" in content:
        return "file that is not UTF-8 text"
    return None if text.strip() else "empty file"


def _fitting(documents: Sequence[Document], max_bytes: int) -> Iterator[Document]:
    left = max_bytes
    for document in documents:
        if len(document.text) <= left:
            left -= len(document.text)
            yield document
