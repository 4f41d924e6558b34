"""Small files that will be read next are fetched before they are opened.

A program that reads a folder's files one after the other (cp, tar, an indexer)
pays a round trip for each; the client is 20 to 100 ms away and answers several
requests at once. Two files of a folder opened in order are taken for such a
reader, and the next few small ones in that order are fetched. While that goes
well, the first file of another folder is enough.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hvbridge import deadline
from hvbridge.config import MIB, Limits
from hvbridge.errors import FsError
from hvbridge.vfs import names
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.remote import Entry
from hvbridge.vfs.tree import Tree

log = logging.getLogger(__name__)

FILES = 8
"""Files fetched ahead of a reader: fewer than there are streams, so that others get through."""

BYTES = MIB
"""What is fetched ahead at most: the price of a wrong guess."""

PATIENCE = 2.0
"""Seconds between two opens of one reader, at most."""

READERS = 64
"""Folders watched at once."""


class ReadAhead:
    """Watches what is opened. ``clock``: monotonic seconds."""

    def __init__(
        self, tree: Tree, cache: ContentCache, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tree, self._cache, self._limits, self._clock = tree, cache, limits, clock
        self._lock = threading.Lock()
        self._last: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._orders: OrderedDict[str, tuple[float, list[str], list[Entry]]] = OrderedDict()
        self._went_well = -PATIENCE
        self._under_way: set[str] = set()
        self._pool = ThreadPoolExecutor(FILES, thread_name_prefix="hvbridge-readahead")

    def opened(self, path: str) -> None:
        """``path`` was opened for reading; returns at once."""
        folder, name = names.split(path)
        if not self._in_order(folder, name):
            return
        for entry in self._following(folder, name):
            below = names.join(folder, entry.name)
            with self._lock:
                if below in self._under_way:
                    continue
                self._under_way.add(below)
            self._pool.submit(self._fetch, below, entry)

    def close(self) -> None:
        """Fetch nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _in_order(self, folder: str, name: str) -> bool:
        now = self._clock()
        with self._lock:
            last = self._last.pop(folder, None)
            self._last[folder] = (name, now)
            if len(self._last) > READERS:
                self._last.popitem(last=False)
            if last is None:
                return now - self._went_well < PATIENCE
            if last[0] < name and now - last[1] < PATIENCE:
                self._went_well = now
                return True
            return False

    def _following(self, folder: str, name: str) -> list[Entry]:
        known = self._order(folder)
        if known is None:
            return []
        ordered, entries = known
        at = bisect_right(ordered, name)
        wanted, size = [], 0
        for entry in entries[at : at + FILES]:
            size += entry.size or 0
            if size > BYTES:
                break
            wanted.append(entry)
        return wanted

    def _order(self, folder: str) -> tuple[list[str], list[Entry]] | None:
        """Names and entries of the folder's small files, sorted once a listing."""
        known = self._tree.known(folder)
        if known is None:
            return None
        asked_at, entries = known
        with self._lock:
            order = self._orders.get(folder)
        if order is None or order[0] != asked_at:
            small = sorted((e for e in entries if self._is_small(e)), key=lambda e: e.name)
            order = (asked_at, [e.name for e in small], small)
            with self._lock:
                self._orders[folder] = order
                if len(self._orders) > READERS:
                    self._orders.popitem(last=False)
        return order[1], order[2]

    def _is_small(self, entry: Entry) -> bool:
        return (
            not entry.is_dir and entry.etag is not None and 0 < (entry.size or 0) <= self._limits.small_file
        )

    def _fetch(self, path: str, entry: Entry) -> None:
        try:
            with deadline.within(self._limits.request):
                self._cache.ahead(path, entry)
        except FsError as exc:
            log.debug("reading ahead: %s", exc)
        finally:
            with self._lock:
                self._under_way.discard(path)
