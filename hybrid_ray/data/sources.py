"""Where text comes from with no download: the source of the installed Python, its packages, or a folder."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hybrid_ray.errors import ConfigError

__all__ = ["Document", "read_documents"]

SKIPPED = {"__pycache__", "site-packages", "dist-packages"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file: its path relative to its root (with /), its bytes (valid UTF-8), and a hash of both."""

    path: str
    text: bytes

    @property
    def digest(self) -> bytes:
        return sha256(self.path.encode() + b"\0" + self.text).digest()


def _python_files(root: Path, skipped: set[str]) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        if not skipped.intersection(path.relative_to(root).parts):
            yield path


def _roots(corpus: str) -> Iterator[tuple[str, Path, list[Path]]]:
    if corpus in ("stdlib", "installed"):
        paths = sysconfig.get_paths()
        root = Path(paths["stdlib"])
        yield "stdlib", root, list(_python_files(root, SKIPPED))
        if corpus == "installed":
            for root in sorted({Path(paths["purelib"]), Path(paths["platlib"])}):
                yield "site-packages", root, list(_python_files(root, {"__pycache__"}))
        return
    root = Path(corpus).expanduser()
    if not root.is_dir():
        raise ConfigError(
            f"data.corpus is {corpus!r} but there is no such folder: give a folder of text files, or one of "
            "stdlib, installed, random"
        )
    files = (path for path in root.rglob("*") if path.is_file())
    yield "", root, [path for path in files if not any(part[0] == "." for part in path.relative_to(root).parts)]


def _is_text(content: bytes) -> bool:
    try:
        return b"\0" not in content and bool(content.decode("utf-8").strip())
    except UnicodeDecodeError:
        return False


def read_documents(corpus: str, *, max_bytes: int | None = None) -> list[Document]:
    """The corpus's files in the order of their hashes, which is a fixed shuffle of them.

    Files that are empty or not UTF-8 are left out, as are second copies of the same content: a copy could land in
    training while the first is held out. ``max_bytes`` keeps as many files, in that order, as fit into it.

    Raises:
        ConfigError: the folder is missing or holds no text.
    """
    by_content: dict[bytes, Document] = {}
    for prefix, root, files in _roots(corpus):
        for path in sorted(files):
            content = path.read_bytes()
            if _is_text(content):
                name = "/".join((prefix, *path.relative_to(root).parts)).lstrip("/")
                by_content.setdefault(sha256(content).digest(), Document(path=name, text=content))
    documents = sorted(by_content.values(), key=lambda document: document.digest)
    if not documents:
        raise ConfigError(
            f"data.corpus is {corpus!r} but no file in it holds text (UTF-8): give a folder of text files"
        )
    return documents if max_bytes is None else list(_first(documents, max_bytes))


def _first(documents: list[Document], max_bytes: int) -> Iterator[Document]:
    left = max_bytes
    for document in documents:
        if len(document.text) <= left:
            left -= len(document.text)
            yield document
