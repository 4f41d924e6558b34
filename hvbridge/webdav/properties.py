"""Values of WebDAV properties (RFC 4918 §15), as lenient as real servers need and no more.

Each function takes a property's text and gives ``None`` for what it cannot
believe: a wrong size or date must not take the entry away.
"""

from __future__ import annotations

import datetime
import email.utils
import re

MAX_SIZE = 2**63 - 1
"""Largest file size that a host can express (``off_t``)."""

MAX_DISTANCE = 2**63 // 10**9
"""Seconds from 1970 that fit in signed 64-bit nanoseconds (to the year 2262)."""

PHODAV_ETAG = re.compile(r'"(-?\d{1,11}):(\d{1,6})(?::(\d{1,9}))?"')
"""GLib's: seconds, microseconds and, since 2.74 or so, nanoseconds of the second."""

SHARE_ETAG = re.compile(r'"(-?[0-9a-f]{1,16})-[0-9a-f]+-[0-9a-f]+"')
"""hvbridge's own share's: nanoseconds, size, inode."""

UTC = datetime.UTC


def size_of(text: str | None) -> int | None:
    """Bytes, from ``getcontentlength``."""
    if text is None or not (text := text.strip()).isascii() or not text.isdigit() or len(text) > 19:
        return None
    size = int(text)
    return size if size <= MAX_SIZE else None


def time_of(text: str | None) -> int | None:
    """Nanoseconds since 1970 UTC, from RFC 1123 or ISO 8601.

    RFC 4918 says which property has which; phodav has them the other way round.
    """
    if not text or len(text) > 64:
        return None
    text = text.strip()
    try:
        when = (
            datetime.datetime.fromisoformat(text)
            if text[:1].isdigit()
            else email.utils.parsedate_to_datetime(text)
        )
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        since = when - datetime.datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    seconds = since.days * 86400 + since.seconds
    if abs(seconds) >= MAX_DISTANCE:
        return None
    return seconds * 10**9 + since.microseconds * 1000


def exact_time(etag: str | None, mtime_ns: int | None) -> int | None:
    """``mtime_ns`` with the fraction of a second that the ETag of phodav or of our own share tells."""
    if mtime_ns is None or etag is None:
        return mtime_ns
    exact = None
    if found := PHODAV_ETAG.fullmatch(etag):
        exact = int(found[1]) * 10**9 + (int(found[3]) if found[3] else int(found[2]) * 1000)
    elif found := SHARE_ETAG.fullmatch(etag):
        exact = int(found[1], 16)
    return exact if exact is not None and exact // 10**9 == mtime_ns // 10**9 else mtime_ns


def etag_of(text: str | None) -> str | None:
    """An entity tag with its quotes (RFC 9110 §8.8.3), ``W/`` kept; ``None`` for none.

    Some servers leave the quotes out of the property; what cannot stand in a
    header line is no tag.
    """
    if not text or len(text := text.strip()) > 256 or not text.isascii() or not text.isprintable():
        return None
    bare = text.removeprefix("W/")
    if len(bare) >= 2 and bare[0] == bare[-1] == '"':
        return text if '"' not in bare[1:-1] else None
    return f'"{text}"' if text and '"' not in text and not text.startswith("W/") else None


def flag_of(text: str | None) -> bool | None:
    """mod_dav's ``executable``: ``T`` or ``F``."""
    return {"T": True, "F": False}.get((text or "").strip())


def http_date(mtime_ns: int) -> str:
    """RFC 1123 form of a time, whole seconds."""
    return email.utils.formatdate(mtime_ns // 10**9, usegmt=True)


def iso_date(mtime_ns: int) -> str:
    """ISO 8601 form of a time, nine digits of a second included."""
    seconds, fraction = divmod(mtime_ns, 10**9)
    when = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return f"{when.isoformat(timespec='seconds')}.{fraction:09}Z"
