"""Every name that Linux allows goes there and back, through each method that carries one."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.dav import Dav, shared

NAMES = [
    "plain",
    "per%cent",
    "%41",
    "%2F",
    "ha#sh",
    "que?stion",
    "R&D",
    "<less>",
    "semi;colon",
    "a=b",
    "com,ma",
    "plus+plus",
    "at@",
    "co:lon",
    "quo\"te's",
    "back\\slash",
    "[brackets]",
    " leading",
    "trailing ",
    " ",
    "new\nline",
    "tab\t",
    "return\r",
    "\x01control\x7f",
    "Grüße",
    unicodedata.normalize("NFD", "Grüße"),
    "日本語",
    "😀",
    "x" * 255,
    "é" * 127,
    ".hidden",
    "...",
    "-",
    "~",
    "*",
    "https:",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def dav(root: Path) -> Iterator[Dav]:
    with shared(root) as dav:
        yield dav


@pytest.mark.parametrize("name", NAMES)
def test_a_name_through_every_method(root: Path, dav: Dav, name: str) -> None:
    raw = name.encode()
    path, folder, inside = f"/{name}", f"/d/{name}", f"/d/{name}/{name}"
    (root / "d").mkdir(exist_ok=True)
    assert dav.put(path, b"content") == 201
    assert (root / name).read_bytes() == b"content"
    assert dav.get(path) == b"content"
    assert dav.names("/") >= {raw}
    assert dav("MKCOL", folder).status == 201
    assert dav.names("/d") == {raw}
    assert dav.move(path, inside, "COPY") == 201
    assert dav.move(path, f"/moved{name[5:]}") == 201
    assert dav.move(f"/moved{name[5:]}", path) == 201
    assert dav.names(folder) == {raw}
    assert dav.get(inside) == b"content"
    assert dav("DELETE", path).status == 204
    assert dav("DELETE", folder).status == 204
    assert not (root / name).exists()
    assert os.listdir(root) == ["d"]  # noqa: PTH208
    assert os.listdir(root / "d") == []  # noqa: PTH208


@pytest.mark.parametrize("name", NAMES)
def test_the_display_name_is_right_or_not_there(root: Path, dav: Dav, name: str) -> None:
    (root / "d").mkdir(exist_ok=True)
    path = root / "d" / name
    path.write_text("x")
    (props,) = dav.list(f"/d/{name}", depth="0").values()
    path.unlink()
    assert props.get("displayname", name) == name
    assert ("displayname" in props) == ("\x01" not in name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=60).filter(lambda raw: not {0, 47} & set(raw) and raw not in (b".", b".."))
)
def test_any_bytes_are_a_name(root: Path, dav: Dav, raw: bytes) -> None:
    """Also those that are not UTF-8: the href has the bytes."""
    base = os.fsencode(root / "d")
    os.makedirs(base, exist_ok=True)  # noqa: PTH103
    assert dav.put(b"/d/" + raw, raw) == 201
    assert os.listdir(base) == [raw]  # noqa: PTH208
    assert dav.names("/d") == {raw}
    assert dav.get(b"/d/" + raw) == raw
    assert dav("DELETE", b"/d/" + raw).status == 204


def test_a_name_of_256_bytes_is_refused(dav: Dav) -> None:
    assert dav.put("/" + "x" * 256, b"") == 414
    assert dav("MKCOL", "/" + "x" * 256).status == 414


def test_dots_lead_nowhere(root: Path, dav: Dav) -> None:
    (root.parent / "outside").write_text("secret")
    try:
        for path in ("/../outside", "/d/../../outside", "/./../outside", "//../outside"):
            assert dav("GET", path).status in (400, 404)
            assert dav.put(path, b"x") in (400, 404, 409)
        (root / "f").write_text("x")
        for target in ("/../stolen", "/%2e%2e/stolen", "/d/../../stolen"):
            assert dav("MOVE", "/f", Destination=target).status == 400
        assert (root.parent / "outside").read_text() == "secret"
        assert not (root.parent / "stolen").exists()
    finally:
        (root.parent / "outside").unlink()
        (root / "f").unlink()


def test_a_nul_is_refused(dav: Dav) -> None:
    assert dav("GET", b"/a\0b").status == 400
    assert dav.put(b"/a\0b", b"") == 400


def test_hidden_names_are_not_listed_and_still_there(root: Path, dav: Dav) -> None:
    """The host writes under such names, and lists them no more than we do."""
    part = "/.hvbridge-0123456789abcdef.part"
    assert dav.put(part, b"x") == 201
    assert dav.put("/.hvbridge-0123456789abcdef.gone", b"x") == 201
    assert dav.put("/.hvbridge-0123456789abcde.part", b"shorter, so not ours") == 201
    assert {n for n in dav.names("/") if n.startswith(b".hvb")} == {b".hvbridge-0123456789abcde.part"}
    assert dav.get(part) == b"x"
    assert dav.move(part, "/done") == 201
    assert (root / "done").read_bytes() == b"x"
    for path in root.iterdir():
        if path.is_file():
            path.unlink()
