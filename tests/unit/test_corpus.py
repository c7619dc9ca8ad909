"""Corpora: what is read, what is held out, and a cache that several processes may fill at once."""

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_pool import forking
from tokenizers import pre_tokenizers

from hybrid_ray.config import DataConfig, Split
from hybrid_ray.data import Corpus, prepare_text
from hybrid_ray.data.cache import cached_directory
from hybrid_ray.data.corpus import quick_to_prepare
from hybrid_ray.data.sources import Document, list_files, read_documents
from hybrid_ray.data.split import SPLITS
from hybrid_ray.data.tokenizer import BPETokenizer, ByteTokenizer, train_bpe
from hybrid_ray.errors import ConfigError

END = ByteTokenizer.vocab_size - 1


def write_folder(root: Path, files: int, *, size: int = 900) -> Path:
    """Files whose every line names them, so that a held-out line tells where it is from."""
    for number in range(files):
        path = root / f"part{number % 3}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"line of file {number:04d} é\n" * (size // 24))
    return root


def tiny(tmp_path: Path, **changes: object) -> DataConfig:
    corpus = tmp_path / "text"
    if not corpus.exists():
        write_folder(corpus, 40)
    values = {"corpus": str(corpus), "heldout_tokens": 1024, "cache_dir": str(tmp_path / "cache")}
    return DataConfig(**{**values, **changes})  # type: ignore[arg-type]


def documents_of(root: Path) -> list[Document]:
    return read_documents(list_files(str(root))[0])[0]


def file_numbers(corpus: Corpus, tokens: np.ndarray) -> set[str]:
    words = corpus.decode(tokens.tolist()).split()
    return {word for word in words if len(word) == 4 and word.isdigit()}


def slices(corpus: Corpus, split: Split) -> list[np.ndarray]:
    """The held-out text of each file."""
    return np.split(corpus.heldout[split], corpus.heldout_starts[split][1:])


def test_standard_library_is_whole_and_mixed(tmp_path: Path) -> None:
    corpus = prepare_text(DataConfig(cache_dir=str(tmp_path)))
    assert corpus.vocab_size == 257
    assert len(corpus.train) > 5_000_000
    assert corpus.train.max() == END
    assert {split: len(tokens) for split, tokens in corpus.heldout.items()} == dict.fromkeys(SPLITS, 65_536)
    assert all(len(starts) > 64 for starts in corpus.heldout_starts.values())
    assert "import" in corpus.decode(corpus.train[:20_000].tolist())


def test_text_is_all_there_file_by_file(tmp_path: Path) -> None:
    corpus = prepare_text(tiny(tmp_path))
    ends = np.flatnonzero(corpus.train == END)
    assert ends[-1] == len(corpus.train) - 1
    held = set.union(*(set.union(*(file_numbers(corpus, part) for part in slices(corpus, split))) for split in SPLITS))
    texts = {bytes(part[part != END].astype(np.uint8)) for part in np.split(corpus.train, ends[:-1] + 1)}
    expected = {path for path in (tmp_path / "text").rglob("*.txt") if f"{int(path.stem[4:]):04d}" not in held}
    assert len(ends) == len(expected)
    assert texts == {path.read_bytes() for path in expected}


@settings(max_examples=15, deadline=None)
@given(files=st.integers(30, 60), heldout=st.integers(1024, 3000), limit=st.sampled_from([None, 25_000]))
def test_no_file_is_in_two_places(
    tmp_path_factory: pytest.TempPathFactory, files: int, heldout: int, limit: int | None
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    write_folder(root / "text", files)
    corpus = prepare_text(tiny(root, heldout_tokens=heldout, max_bytes=limit))
    places = [file_numbers(corpus, corpus.train)]
    for split in SPLITS:
        assert len(corpus.heldout[split]) == heldout
        parts = slices(corpus, split)
        numbers = [file_numbers(corpus, part) for part in parts]
        assert all(len(some) <= 1 for some in numbers)
        places.append(set.union(*numbers))
        assert max(map(len, parts)) <= heldout // (len(parts) - 1)  # files share alike
    assert all(places)
    assert sum(map(len, places)) == len(set.union(*places))


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    before = prepare_text(config)
    shutil.copytree(tmp_path / "text", tmp_path / "text" / "vendored")
    after = prepare_text(config)
    assert len(after.train) == len(before.train)


def test_other_text_other_settings_another_corpus(tmp_path: Path) -> None:
    first = prepare_text(tiny(tmp_path))
    assert prepare_text(tiny(tmp_path)).fingerprint == first.fingerprint
    assert prepare_text(tiny(tmp_path, heldout_tokens=1025)).fingerprint != first.fingerprint
    assert prepare_text(tiny(tmp_path, max_bytes=20_000)).fingerprint != first.fingerprint
    (tmp_path / "text" / "part0" / "file0.txt").write_text("something else\n" * 60)
    assert prepare_text(tiny(tmp_path)).fingerprint != first.fingerprint


def test_the_same_text_elsewhere_is_the_same_corpus(tmp_path: Path) -> None:
    first = prepare_text(tiny(tmp_path))
    shutil.copytree(tmp_path / "text", tmp_path / "moved")
    moved = prepare_text(tiny(tmp_path, corpus=str(tmp_path / "moved"), cache_dir=str(tmp_path / "cache2")))
    assert moved.fingerprint == first.fingerprint
    assert np.array_equal(moved.train, first.train)


def test_damaged_cache_is_made_again(tmp_path: Path) -> None:
    whole = np.array(prepare_text(tiny(tmp_path)).train)
    (shard,) = (tmp_path / "cache").glob("corpus-*/train.bin")
    shard.write_bytes(shard.read_bytes()[:100])
    assert np.array_equal(prepare_text(tiny(tmp_path)).train, whole)


def test_failed_build_leaves_nothing_and_a_killed_ones_litter_goes(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cached_directory(tmp_path, "name", fails)
    assert [path.name for path in tmp_path.iterdir()] == [".name.lock"]
    (tmp_path / ".name.tmp-123").mkdir()
    made = cached_directory(tmp_path, "name", lambda directory: (directory / "whole").touch())
    assert {path.name for path in tmp_path.iterdir()} == {".name.lock", "name"}
    assert (made / "whole").exists()


def _prepare_and_log(config: DataConfig, log: str, together: Any) -> None:
    import hybrid_ray.data.corpus as module

    write = module._write

    def logged(*arguments: object) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.5)  # so that the others come while this one builds
        write(*arguments)  # type: ignore[arg-type]

    module._write = logged  # type: ignore[assignment]
    together.wait(60)
    assert len(module.prepare_text(config).train) > 1024


def test_processes_that_prepare_at_once_build_once(tmp_path: Path) -> None:
    config = tiny(tmp_path, tokenizer="bpe", vocab_size=400)
    context = forking()
    arguments = (config, str(tmp_path / "log"), context.Barrier(2))
    processes = [context.Process(target=_prepare_and_log, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: root.mkdir(), r"no file in it can be used as text \(the folder is empty\)"),
        (lambda root: root.write_text("all in one\n" * 10_000), "that is a file and must be a folder: split its text"),
        (lambda root: write_folder(root, 1, size=100_000), "in 1 files but three held-out splits"),
        (lambda root: write_folder(root, 20, size=100), "three held-out splits of 1,024 tokens"),
    ],
)
def test_useless_folder_is_named(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "mine")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message):
        prepare_text(tiny(tmp_path, corpus=str(tmp_path / "mine")))


def test_too_little_left_for_training_is_said(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    for number in range(12):
        (root / f"{number}.txt").write_text(f"short {number}")
    large = 0
    for number in range(500):  # until the large files come first in the order of hashes, and are held out
        path = root / f"large{number}.txt"
        path.write_text(f"{number} " * 3000)
        first = [document.name for document in documents_of(root)[: large + 1]]
        large += path.name in first
        if path.name not in first:
            path.unlink()
        if large == 3:
            break
    with pytest.raises(ConfigError, match="for training but needs at least as many"):
        prepare_text(tiny(tmp_path, corpus=str(root), heldout_tokens=5000))


def test_cache_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't be made .*set data\.cache_dir"):
        prepare_text(tiny(tmp_path, cache_dir=str(tmp_path / "file" / "below")))


@pytest.mark.parametrize("setting", ["corpus", "cache_dir"])
def test_a_home_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{setting} is '~nobody_of_that_name/x' but there is no home folder"):
        prepare_text(tiny(tmp_path, **{setting: "~nobody_of_that_name/x"}))


def test_binary_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "text", 3)
    (root / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (root / "zeros.bin").write_bytes(b"a\0b")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("hidden")
    names = {document.name for document in documents_of(root)}
    assert names == {"part0/file0.txt", "part1/file1.txt", "part2/file2.txt"}


def test_what_is_left_out_of_a_folder_is_counted_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(tmp_path)
    before, root = prepare_text(config), tmp_path / "text"
    (root / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (root / "empty.txt").touch()
    (root / "part3.txt").write_bytes((root / "part0" / "file0.txt").read_bytes())
    (root / "gone.txt").symlink_to(root / "nothing")
    (root / "around").symlink_to(root)
    (root / "locked.txt").symlink_to("/proc/self/mem")  # a regular file that not even root can read from its start
    os.mkfifo(root / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(root)  # a socket's path may not be long
        listener.bind("socket.txt")
        after = prepare_text(config)
    assert after.fingerprint == before.fingerprint
    assert prepare_text(config).fingerprint == before.fingerprint
    assert [record.getMessage() for record in caplog.records] == [
        f"data.corpus {str(root)!r}: 40 files are read; left out: 1 x broken link, 1 x copy of another file, "
        "1 x empty file, 1 x file that cannot be read, 1 x file that is not UTF-8 text, 1 x link to a folder, "
        "2 x pipe, socket or device"
    ]


def test_a_folder_with_no_text_is_told_why(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "latin.txt").write_bytes(b"\xe9")
    os.mkfifo(root / "pipe")
    with pytest.raises(ConfigError, match=r"as text \(1 x file that is not UTF-8 text, 1 x pipe, socket or device\)"):
        prepare_text(tiny(tmp_path, corpus=str(root)))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    plain = prepare_text(config)
    for path in (tmp_path / "text").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert prepare_text(config).fingerprint == plain.fingerprint


def test_random_corpus_is_the_same_everywhere(tmp_path: Path) -> None:
    first, second = (prepare_text(DataConfig(corpus="random", cache_dir=str(tmp_path / name))) for name in "ab")
    assert np.array_equal(first.train, second.train)
    assert set(np.unique(first.train)) == set(range(257))
    large = DataConfig(corpus="random", tokenizer="bpe", vocab_size=50_257, max_bytes=400_000, cache_dir=str(tmp_path))
    corpus = prepare_text(large)
    assert corpus.vocab_size == 50_257
    assert len(corpus.train) == 200_000
    assert 50_000 < corpus.train.max() < 50_257


def test_a_plan_does_not_wait_for_a_tokenizer(tmp_path: Path) -> None:
    config = tiny(tmp_path, tokenizer="bpe", vocab_size=300)
    planned = prepare_text(quick_to_prepare(config))
    assert not list((tmp_path / "cache").glob("**/tokenizer.json"))
    assert prepare_text(config).vocab_size <= planned.vocab_size == 300  # a short text has fewer pairs to learn
    assert quick_to_prepare(config) == config  # it is prepared now
    assert quick_to_prepare(tiny(tmp_path)) == tiny(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        quick_to_prepare(replace(config, corpus=str(tmp_path / "nothing")))


def test_bpe_corpus_is_shorter_and_reads_the_same(tmp_path: Path) -> None:
    plain, shorter = prepare_text(tiny(tmp_path)), prepare_text(tiny(tmp_path, tokenizer="bpe", vocab_size=300))
    assert 256 < shorter.vocab_size <= 300
    assert len(shorter.train) < len(plain.train) / 3
    assert file_numbers(shorter, shorter.train) <= file_numbers(plain, plain.train) | {"é"}
    assert not file_numbers(shorter, shorter.train) & file_numbers(shorter, shorter.heldout["test"])


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    directory = tmp_path_factory.mktemp("bpe")
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    train_bpe(texts, 1000, directory)
    again = tmp_path_factory.mktemp("again")
    train_bpe(texts, 1000, again)
    assert (directory / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    return BPETokenizer(directory)


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_goes_through_either_tokenizer_and_back(bpe: BPETokenizer, text: str) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        (tokens,) = tokenizer.encode([text.encode()])
        assert tokens.dtype == np.uint16
        assert tokens.max() < tokenizer.vocab_size
        assert tokenizer.decode(tokens[:-1].tolist()) == text
        assert tokenizer.decode(tokens.tolist()) == text + "\n\n"


def test_bpe_learns_words_and_no_text_forges_the_end(bpe: BPETokenizer) -> None:
    assert bpe.vocab_size == 1000
    (tokens,) = bpe.encode([b"def test_ return assert <|endoftext|>"])
    assert len(tokens) < 25
    assert np.flatnonzero(tokens == bpe.end).tolist() == [len(tokens) - 1]


def test_a_very_long_word_takes_time_in_proportion(tmp_path: Path) -> None:
    """Four times the word, four times the processor time; without a limit on words it was 16 times."""
    draw = np.random.default_rng(0)
    seconds = []
    for size in (25_000, 100_000):
        word = draw.integers(ord("a"), ord("k"), size, dtype=np.uint8).tobytes()
        start = time.process_time()
        train_bpe([word], 1000, tmp_path)
        (tokens,) = BPETokenizer(tmp_path).encode([word])
        seconds.append(time.process_time() - start)
        assert BPETokenizer(tmp_path).decode(tokens[:-1].tolist()) == word.decode()
    assert seconds[1] < 9 * seconds[0]


def test_ordinary_text_has_the_tokens_it_has_without_a_limit_on_words(bpe: BPETokenizer) -> None:
    text = max(Path(__file__).parent.glob("*.py"), key=lambda path: path.stat().st_size).read_text()
    (tokens,) = bpe.encode([text.encode()])
    bpe.trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokens[:-1].tolist() == bpe.trained.encode(text).ids
