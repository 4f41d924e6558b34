"""Imports go one way, and what must not know of something does not.

Read off the sources with :mod:`ast`, imports within functions included.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvbridge

ROOT = Path(hvbridge.__file__).parent

SEAM = "the seam"
SEAM_MODULES = {"vfs.remote", "vfs.names"}
"""The interface between vfs/ and webdav/, and what both call a name: vfs/ owns it, webdav/ implements it."""

ALLOWED: dict[str, set[str]] = {
    # leaves
    "errors": set(),
    "config": set(),
    "deadline": set(),
    "pin": set(),
    SEAM: {"errors", "config"},
    "host": set(),
    "mounts": {"errors"},
    "control": {"errors", "config"},
    # from the wire up
    "spice": {"errors"},
    "channel": {"spice", "errors", "config", "deadline"},
    "webdav": {"channel", "spice", SEAM, "errors", "config", "deadline", "pin"},
    "vfs": {SEAM, "errors", "config", "deadline", "pin"},
    # outward adapters, which do not know each other
    "fuse": {"vfs", SEAM, "mounts", "errors", "config", "deadline"},
    "backends": {"errors", "config"},
    "domain": {"errors", "config"},
    # what faces processes and people
    "share": {"channel", "spice", "errors", "config", "deadline"},
    "bridge": {"fuse", "vfs", SEAM, "webdav", "channel", "spice", "errors", "config", "deadline"},
    "doctor": {"domain", "host", "errors", "config"},
    "demo": {"backends", "doctor", "host", "mounts", "errors", "config"},
    "cli": {"bridge", "share", "channel", "control", "doctor", "demo", "host", "mounts", "errors", "config"},
    "__main__": {"cli"},
}
"""What each part may import of hvbridge. The order is one in which every part stands below its users."""

ONLY: dict[str, set[str]] = {
    "fuse": {"fuse"},  # fusepy
    "libvirt": {"domain"},
    "click": {"cli"},
    "httpx": {"webdav"},
    "httpcore": {"webdav"},
    "webdav4": {"webdav"},
    "fsspec": {"webdav"},
    "http": {"webdav", "share"},
    "urllib.request": set(),
    "wsgidav": {"share"},
    "cheroot": {"share"},
    "lxml": {"webdav", "share"},
    # What the kernel told us (sockets, the shared folder), and what we tell it (fuse):
    # between them, errors are those of hvbridge.errors.
    "errno": {"fuse", "channel", "share"},
}
"""Libraries, and the only parts that may know them."""

NO_IO = {
    "asyncio",
    "fcntl",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "select",
    "selectors",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "datetime",
    "logging",
}
"""What a part that opens nothing and knows no clock does not import."""


def part_of(path: Path) -> str:
    """The name under which a source file stands in ALLOWED."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return SEAM if ".".join(parts) in SEAM_MODULES else parts[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a source file imports."""
    package = ".".join(("hvbridge", *path.relative_to(ROOT).parent.parts)).rstrip(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            for alias in node.names:
                yield f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base


def is_module(name: str) -> bool:
    """True for a module of hvbridge (so that ``from hvbridge import mounts`` counts as one)."""
    if not name.startswith("hvbridge."):
        return False
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def target_of(module: str) -> str | None:
    """The part that a module of hvbridge belongs to; ``None`` for others and for the package itself."""
    head, _, rest = module.partition(".")
    if head != "hvbridge" or not rest:
        return None
    return SEAM if rest in SEAM_MODULES else rest.split(".")[0]


SOURCES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in ALLOWED, f"say in ALLOWED where {part} stands"
    targets = {target for module in imports(path) if (target := target_of(module)) is not None}
    assert targets - {part} <= ALLOWED[part]


def test_the_order_has_no_circle() -> None:
    seen: set[str] = set()
    for part, below in ALLOWED.items():
        assert below <= seen, f"{part} stands above what it may import"
        seen.add(part)


def test_the_leaves_are_not_packages_in_disguise() -> None:
    """The seam can only be a leaf if importing it does not run the rest of vfs."""
    tree = ast.parse((ROOT / "vfs" / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("library", ONLY)
def test_only_some_know_a_library(library: str) -> None:
    users = {
        part_of(path)
        for path in SOURCES
        for module in imports(path)
        if module == library or module.startswith(f"{library}.")
    }
    assert users <= ONLY[library]


def test_spice_opens_nothing_and_knows_no_clock() -> None:
    known = {module.split(".")[0] for path in SOURCES if part_of(path) == "spice" for module in imports(path)}
    assert known, "nothing was looked at"
    assert not known & NO_IO


def test_what_is_read_is_what_is_there(tmp_path: Path) -> None:
    """The reader sees imports in functions, relative ones, and modules imported from packages."""
    text = """
from hvbridge import mounts, __version__
from . import remote
from .tree import Tree
def late():
    import errno
    from hvbridge.fuse.mount import FuseMount
"""
    path = ROOT / "vfs" / "imagined.py"
    found = list(imports_of(text, path, tmp_path))
    assert found == [
        "hvbridge.mounts",
        "hvbridge",
        "hvbridge.vfs.remote",
        "hvbridge.vfs.tree",
        "errno",
        "hvbridge.fuse.mount",
    ]


def imports_of(text: str, path: Path, tmp_path: Path) -> Iterator[str]:
    """:func:`imports` for a text that claims to be at ``path``."""

    class Imagined(type(path)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            return text

    yield from imports(Imagined(path))
