"""From responses of a PROPFIND to :class:`Entry` and :class:`Listing`; pure.

Names are hostile input: one that a host could not carry, or that is not a direct
member of the folder asked for, is dropped and counted. Two ways lead to a name:

* most servers: the last component of ``href``, percent-decoded, must be UTF-8;
* phodav: ``displayname``. Its ``href`` holds ``%``, ``#`` and ``?`` unescaped, is
  empty where they make no URI, and so cannot be trusted with a name.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from hvbridge.config import Limits
from hvbridge.errors import IOFailed, NotDirectory, NotFound
from hvbridge.vfs import names
from hvbridge.vfs.remote import Entry, Listing, Quota
from hvbridge.webdav.multistatus import APACHE, DAV, RawResponse
from hvbridge.webdav.properties import etag_of, exact_time, flag_of, size_of, time_of
from hvbridge.webdav.quirks import CLIPBOARD, Quirks

AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")
LOSSY = "\N{REPLACEMENT CHARACTER}"

PROPFIND_ENTRY = (
    b'<?xml version="1.0" encoding="utf-8"?>'
    b'<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/><getetag/>'
    # phodav finds "executable" in DAV: only, and answers it in Apache's namespace.
    b'<displayname/><executable/><executable xmlns="http://apache.org/dav/props/"/></prop></propfind>'
)
"""The properties an :class:`Entry` is made of; ``allprop`` costs phodav six times as much."""

PROPFIND_AVAILABLE = b'<propfind xmlns="DAV:"><prop><quota-available-bytes/></prop></propfind>'
PROPFIND_QUOTA = b'<propfind xmlns="DAV:"><prop><quota-available-bytes/><quota-used-bytes/></prop></propfind>'


@dataclass(frozen=True, slots=True)
class Found:
    """A listing, and what it could not tell."""

    listing: Listing
    twin: str | None = None
    """Name of a member folder that cannot be told from the folder itself (phodav, ``href`` empty
    for both): its entry may have the folder's time. Ask for it alone."""


def entry_of(path: str, responses: Sequence[RawResponse], quirks: Quirks, prefix: str = "") -> Entry:
    """The entry that a Depth 0 answer for ``path`` tells.

    Raises :class:`NotFound` where the answer says so inside, :class:`IOFailed` if it is about
    something else.
    """
    own = responses[0] if len(responses) == 1 else None
    if own is None:
        at = [raw for raw in responses if path_of(raw.href, "/", prefix) == path]
        if len(at) != 1:
            raise IOFailed(f"the client answered with {len(responses)} entries to a question about one", path)
        own = at[0]
    if own.status in (404, 410):
        raise NotFound("no such file or folder", path)
    if not is_told(own):
        raise IOFailed("the client does not say whether it is a file or a folder", path)
    return made(names.split(path)[1], own, quirks)


def listing_of(
    path: str, responses: Sequence[RawResponse], quirks: Quirks, limits: Limits, prefix: str = ""
) -> Found:
    """The folder that a Depth 1 answer for ``path`` tells.

    ``prefix``: path of the share's root on the server, without a trailing slash. Raises
    :class:`NotDirectory` if ``path`` is a file, :class:`IOFailed` if the answer has no entry for
    ``path`` itself.
    """
    own, twin = own_by_name(path, responses) if quirks.display_names else own_by_href(path, responses, prefix)
    if own is None:
        raise IOFailed("the client's listing has no entry for the folder itself", path)
    if own.status in (404, 410):
        raise NotFound("no such folder", path)
    if not own.collection:
        raise NotDirectory("not a folder", path)
    entries: dict[str, Entry] = {}
    dropped = 0
    for raw in responses:
        if raw is own:
            continue
        name = name_of(raw) if quirks.display_names else member_of(raw.href, path, prefix)
        if name is None or name in entries or not is_told(raw) or not is_possible(name, limits):
            dropped += 1
        elif not is_ours(name, path, quirks):
            entries[name] = made(name, raw, quirks)
    folder = made(names.split(path)[1], own, quirks)
    return Found(Listing(folder, tuple(entries.values()), dropped), twin)


def quota_of(responses: Sequence[RawResponse]) -> Quota:
    """RFC 4331's properties of a Depth 0 answer."""
    found = responses[0].properties if responses else {}
    return Quota(
        available=size_of(found.get(DAV + "quota-available-bytes")),
        used=size_of(found.get(DAV + "quota-used-bytes")),
    )


def made(name: str, raw: RawResponse, quirks: Quirks) -> Entry:
    """An :class:`Entry` from one response's properties."""
    found = raw.properties
    etag = etag_of(found.get(DAV + "getetag"))
    mtime = time_of(found.get(DAV + "getlastmodified"))
    if quirks.etag_time:
        mtime = exact_time(etag, mtime)
    if raw.collection:
        return Entry(name, is_dir=True, mtime_ns=mtime, etag=etag)
    return Entry(
        name,
        is_dir=False,
        size=size_of(found.get(DAV + "getcontentlength")),
        mtime_ns=mtime,
        etag=etag,
        executable=flag_of(found.get(APACHE + "executable")),
    )


def is_told(raw: RawResponse) -> bool:
    """True if the response says whether it is a file or a folder (phodav: not for pipes and sockets)."""
    return raw.status in (None, 200) and DAV + "resourcetype" in raw.properties


def is_possible(name: str, limits: Limits) -> bool:
    """True for a name that a Linux host can carry."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return False
    return len(name.encode(errors="surrogatepass")) <= limits.name_bytes


def is_ours(name: str, folder: str, quirks: Quirks) -> bool:
    """True for members that exist and are not shown."""
    return names.is_hidden(name) or (quirks.clipboard and folder == "/" and name == CLIPBOARD)


# --- by href ------------------------------------------------------------


def path_of(href: str, folder: str, prefix: str) -> str | None:
    """The path within the share that ``href`` names, without a trailing slash; ``None`` if none.

    ``href`` may be absolute or an absolute path (RFC 4918 §8.3) or, against the rules, relative
    to ``folder``. Whose host it names does not matter: it is never followed.
    """
    href = AUTHORITY.sub("", href, count=1).strip()
    if LOSSY in href:
        return None
    try:
        path = urllib.parse.unquote(href, errors="strict")
    except UnicodeDecodeError:
        return None
    if not path.startswith("/"):
        return names.join(folder, path.rstrip("/")) if path else None
    path = "/" + path.strip("/")
    if path == prefix:
        return "/"
    if not path.startswith(prefix + "/"):
        return None
    return path[len(prefix) :]


def member_of(href: str, folder: str, prefix: str) -> str | None:
    """The name that ``href`` has in ``folder``; ``None`` if it is elsewhere."""
    path = path_of(href, folder, prefix)
    if path is None:
        return None
    parent, name = names.split(path)
    return name if parent == folder and name else None


def own_by_href(
    path: str, responses: Sequence[RawResponse], prefix: str
) -> tuple[RawResponse | None, str | None]:
    """The response for ``path`` itself."""
    for raw in responses:
        if path_of(raw.href, path, prefix) == path:
            return raw, None
    return None, None


# --- by displayname -----------------------------------------------------


def name_of(raw: RawResponse) -> str | None:
    """phodav's name of a member: its ``displayname``, unless that is lossy.

    GLib replaces what is not UTF-8 by U+FFFD and adds a note. It does so, too, for a name that
    really has U+FFFD in it; then ``href`` is UTF-8 and begins the same way.
    """
    shown = raw.properties.get(DAV + "displayname")
    if shown is None or LOSSY not in shown:
        return shown
    try:
        name = urllib.parse.unquote(raw.href.rpartition("/")[2], errors="strict")
    except UnicodeDecodeError:
        return None
    return name if name and LOSSY in name and shown.startswith(name) else None


def own_by_name(path: str, responses: Sequence[RawResponse]) -> tuple[RawResponse | None, str | None]:
    """The response for ``path`` itself among phodav's, and the name of a twin.

    Their order is that of a hash table and ``href`` may be empty. The folder's own response has
    its name, like a member of the same name; but the member's ``href`` is the longer one.
    """
    if len(responses) == 1:
        return responses[0], None
    if path == "/":
        # Not decoded: a member may be called "%2F".
        roots = [raw for raw in responses if raw.collection and AUTHORITY.sub("", raw.href) == "/"]
        return (roots[0], None) if roots else (None, None)
    name = names.split(path)[1]
    same = sorted(
        (raw for raw in responses if raw.collection and name_of(raw) == name), key=lambda raw: len(raw.href)
    )
    if not same:
        return None, None
    twin = len(same) > 1 and len(same[0].href) == len(same[1].href)
    return same[0], name if twin else None
