"""The fsspec filesystem over the mux, on hvbridge's own share; phodav's costs by its traits."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from hvbridge.channel.opening import open_channel
from hvbridge.channel.session import spawn
from hvbridge.share.server import Share
from hvbridge.webdav import files
from hvbridge.webdav.fs import HvbridgeFileSystem
from hvbridge.webdav.quirks import Quirks
from hvbridge.webdav.remote import WebdavRemote

BIG = 300_000
"""More than is put in one request where a server promises nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def url(folder: Path, tmp_path: Path) -> Iterator[str]:
    share = Share(folder, open_channel(f"unix-listen://{tmp_path}/sock"))
    thread = spawn("share", share.run)
    yield f"unix://{tmp_path}/sock"
    share.close()
    thread.join(5)


@pytest.fixture
def fs(url: str) -> Iterator[HvbridgeFileSystem]:
    with HvbridgeFileSystem(url) as fs:
        yield fs


@pytest.fixture
def promising_nothing(fs: HvbridgeFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is one of which nothing is known."""
    monkeypatch.setattr("hvbridge.webdav.remote.quirks_of", lambda server: Quirks(keeps_mode=True))


def sent(fs: HvbridgeFileSystem) -> dict[str, int]:
    return dict(fs.remote.client.requests)


def test_fsspec_knows_the_protocol(url: str, folder: Path) -> None:
    (folder / "notes.txt").write_text("one\ntwo\n")
    with fsspec.open("hvbridge://notes.txt", channel=url) as file:
        assert file.read() == b"one\ntwo\n"
    with fsspec.open("hvbridge://notes.txt", "rt", channel=url) as file:
        assert file.readlines() == ["one\n", "two\n"]
    with fsspec.open("hvbridge://new.txt", "wt", channel=url) as file:
        file.write("text")
    assert (folder / "new.txt").read_text() == "text"


def test_instances_are_not_shared_and_connect_when_used(url: str) -> None:
    first, second = HvbridgeFileSystem(url), HvbridgeFileSystem(url)
    assert first is not second
    assert first._remote is None
    first.close()
    first.close()


def test_walks_with_names_of_any_kind(fs: HvbridgeFileSystem, folder: Path) -> None:
    names = {"a%20b", "#1", "R&D", " x ", "n\u00e4me", 'q"', "plain", "semi;colon"}
    for name in names:
        (folder / f"d{name}").mkdir()
        (folder / f"d{name}" / name).write_bytes(b"12345")
    expected = {f"d{name}/{name}" for name in names}
    assert set(fs.find("")) == expected
    assert fs.du("") == 5 * len(names)
    assert {path for path, _, _ in fs.walk("")} == {"", *(f"d{name}" for name in names)}
    assert fs.glob("*/plain") == ["dplain/plain"]
    for path in expected:
        assert fs.cat_file(path) == b"12345"
        assert fs.isfile(path)
        info = fs.info(path)
        assert (info["name"], info["size"], info["type"]) == (path, 5, "file")
    assert fs.isdir("dR&D")
    assert not fs.exists("nope")
    assert fs.ls("dR&D", detail=False) == ["dR&D/R&D"]
    assert fs.ls("dR&D/R&D", detail=False) == ["dR&D/R&D"]


def test_reading_in_order_is_one_request(fs: HvbridgeFileSystem, folder: Path) -> None:
    data = os.urandom(5 << 20)
    (folder / "f").write_bytes(data)
    with fs.open("f") as file:
        assert file.size == len(data)
        assert b"".join(iter(lambda: file.read(70_000), b"")) == data
    assert sent(fs) == {"GET": 1}


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_seeking(
    fs: HvbridgeFileSystem, folder: Path, small: int, monkeypatch: pytest.MonkeyPatch, promising_nothing: None
) -> None:
    """With dear ranges a seek costs one whole stream at most; with cheap ones, a range."""
    monkeypatch.setattr(files, "SMALL", small)
    data = os.urandom(9 << 20)
    (folder / "f").write_bytes(data)
    asked: list[tuple[int, int | None]] = []
    get = WebdavRemote.get

    def watched(self: WebdavRemote, path: str, start: int = 0, end: int | None = None) -> object:
        asked.append((start, end))
        return get(self, path, start, end)

    monkeypatch.setattr(WebdavRemote, "get", watched)
    with fs.open("f") as file:
        for at in (100, 8 << 20, 5, 9 << 20, 4 << 20, 8 << 20, 0):
            assert file.seek(at) == at
            assert file.read(1000) == data[at : at + 1000]
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        with pytest.raises(ValueError, match="before"):
            file.raw.seek(-1)
    if small:
        assert all(end == len(data) for start, end in asked[1:])
    else:
        assert asked == [(0, None), (0, None)]


def test_a_zip_file(fs: HvbridgeFileSystem, folder: Path) -> None:
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("inner", b"content" * 1000)
    with fs.open("z.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("inner") == b"content" * 1000


def test_a_file_that_changes_between_two_reads(fs: HvbridgeFileSystem, folder: Path) -> None:
    (folder / "f").write_bytes(b"a" * (4 << 20))
    with fs.open("f") as file:
        file.read(10)
        (folder / "g").write_bytes(b"b" * (4 << 20))
        (folder / "g").replace(folder / "f")
        file.seek(3 << 20)
        with pytest.raises(OSError, match="changed"):
            file.read(10)


def test_parts(fs: HvbridgeFileSystem, folder: Path, promising_nothing: None) -> None:
    (folder / "f").write_bytes(b"0123456789")
    for start, end in (
        (2, 5),
        (None, 3),
        (7, None),
        (-3, None),
        (-5, -2),
        (4, 4),
        (20, 30),
        (None, None),
        (0, 99),
    ):
        assert fs.cat_file("f", start, end) == b"0123456789"[start:end]


def test_parts_where_ranges_are_cheap(fs: HvbridgeFileSystem, folder: Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    fs.info("f")
    assert fs.remote.traits.ranges is True
    for start, end in ((2, 5), (None, 3), (7, None), (-3, None), (20, 30), (0, 99)):
        assert fs.cat_file("f", start, end) == b"0123456789"[start:end]


@pytest.mark.parametrize("size", [0, 10, BIG])
def test_writing_is_whole_and_keeps_the_mode(
    fs: HvbridgeFileSystem, folder: Path, size: int, promising_nothing: None
) -> None:
    (folder / "f").write_bytes(b"old")
    (folder / "f").chmod(0o751)
    with fs.open("f", "wb") as file:
        file.write(b"x" * size)
        assert (folder / "f").read_bytes() == b"old"
    assert (folder / "f").read_bytes() == b"x" * size
    assert (folder / "f").stat().st_mode & 0o777 == 0o751
    assert [path.name for path in folder.iterdir()] == ["f"]


def test_nothing_is_written_after_an_exception(fs: HvbridgeFileSystem, url: str, folder: Path) -> None:
    for mode in ("wb", "w"):
        with pytest.raises(KeyError), fs.open("f", mode) as file:
            file.write("x" if mode == "w" else b"x")
            raise KeyError
    fs.close()
    with pytest.raises(KeyError), fsspec.open("hvbridge://f", "w", channel=url) as file:
        file.write("x")
        raise KeyError
    assert list(folder.iterdir()) == []


def test_writing_while_an_exception_is_handled(fs: HvbridgeFileSystem, folder: Path) -> None:
    try:
        raise KeyError
    except KeyError:
        with fs.open("f", "w") as file:
            file.write("report")
    assert (folder / "f").read_text() == "report"


def test_a_failed_upload_is_an_error_and_leaves_nothing(
    fs: HvbridgeFileSystem, folder: Path, monkeypatch: pytest.MonkeyPatch, promising_nothing: None
) -> None:
    from hvbridge.errors import NoSpace

    (folder / "f").write_bytes(b"old")

    def full(self: WebdavRemote, path: str, body: object, size: int) -> None:
        raise NoSpace("the client's disk is full", path)

    monkeypatch.setattr(WebdavRemote, "put", full)
    with pytest.raises(OSError, match="full"), fs.open("f", "wb") as file:
        file.write(b"new")
    assert (folder / "f").read_bytes() == b"old"
    assert [path.name for path in folder.iterdir()] == ["f"]


def test_exclusive_and_append(fs: HvbridgeFileSystem, folder: Path) -> None:
    with fs.open("f", "xb") as file:
        file.write(b"one")
    with pytest.raises(FileExistsError):
        fs.open("f", "xb")
    with fs.open("f", "ab") as file:
        file.write(b" two")
    assert (folder / "f").read_bytes() == b"one two"
    with pytest.raises(FileExistsError):
        fs.pipe_file("f", b"", mode="create")
    with pytest.raises(ValueError, match="mode"):
        fs.open("f", "r+b")
    (folder / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        fs.open("d", "wb")
    with pytest.raises(IsADirectoryError):
        fs.pipe_file("d", b"x")
    with pytest.raises(IsADirectoryError):
        fs.open("d", "rb")
    with pytest.raises(FileNotFoundError):
        fs.open("nope")


def test_a_transaction(fs: HvbridgeFileSystem, folder: Path) -> None:
    with fs.transaction:
        with fs.open("f", "wb") as file:
            file.write(b"1")
        assert not (folder / "f").exists()
    assert (folder / "f").read_bytes() == b"1"
    with contextlib.suppress(KeyError), fs.transaction:
        with fs.open("g", "wb") as file:
            file.write(b"1")
        raise KeyError
    assert not (folder / "g").exists()


def test_mv_is_a_move_on_the_server(fs: HvbridgeFileSystem, folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    (folder / "d" / "sub").mkdir(parents=True)
    fs.mv("a", "b")
    assert (folder / "b").read_bytes() == b"a"
    fs.mv("b", "d")
    assert (folder / "d" / "b").read_bytes() == b"a"
    (folder / "sub").mkdir()
    (folder / "d" / "sub" / "precious").write_bytes(b"1")
    with pytest.raises(IsADirectoryError):
        fs.mv("sub", "d")
    assert (folder / "d" / "sub" / "precious").exists()
    fs.mv("d", "e", recursive=True)
    assert (folder / "e" / "b").exists()
    assert "GET" not in sent(fs)
    assert "PUT" not in sent(fs)


def test_removing(fs: HvbridgeFileSystem, folder: Path) -> None:
    (folder / "[br]").write_bytes(b"1")
    (folder / "b").write_bytes(b"1")
    fs.rm("[br]")
    assert (folder / "b").exists()
    assert not (folder / "[br]").exists()
    (folder / "d" / "sub").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        fs.rm("d")
    with pytest.raises(IsADirectoryError):
        fs.rm_file("d")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("d")
    fs.rmdir("d/sub")
    fs.rm(["d", "b"], recursive=True)
    assert list(folder.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        fs.rm("nope")


def test_folders_copies_and_whole_files(fs: HvbridgeFileSystem, folder: Path, tmp_path: Path) -> None:
    fs.mkdir("a/b")
    with pytest.raises(FileExistsError):
        fs.mkdir("a/b")
    fs.makedirs("a/b/c/d", exist_ok=True)
    fs.makedirs("a/b/c/d", exist_ok=True)
    fs.pipe("a/f", b"1")
    fs.cp("a/f", "a/g")
    fs.cp("a", "copy", recursive=True)
    assert (folder / "copy" / "g").read_bytes() == b"1"
    with pytest.raises(IsADirectoryError):
        fs.cp_file("a/f", "a/b")
    (tmp_path / "local").write_bytes(b"local")
    fs.put(str(tmp_path / "local"), "up/loaded")
    assert (folder / "up" / "loaded").read_bytes() == b"local"
    fs.get("up/loaded", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"local"
    assert fs.checksum("a/f") == fs.info("a/f")["etag"] is not None
    modified = fs.modified("a/f")
    assert modified is not None
    assert abs(modified.timestamp() - (folder / "a" / "f").stat().st_mtime) < 0.001
    with pytest.raises(NotADirectoryError):
        fs.makedirs("a/f/x")
