"""What is known of WebDAV servers by their ``Server`` header, measured against each of them."""

from __future__ import annotations

from dataclasses import dataclass

ANY_SIZE = 2**63 - 1
"""As a bound of bytes: no bound."""

CLIPBOARD = ".spice-clipboard"
"""A virtual folder at phodav's root that carries the client's clipboard, not its files."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a server differs from RFC 4918, or what it does beyond it. The defaults fit an unknown one."""

    display_names: bool = False
    """``displayname`` is the file's true name, and ``href`` is not to be trusted with it."""

    mend_ampersands: bool = False
    """``href`` may hold ``&`` unescaped: see :mod:`hvbridge.webdav.multistatus`."""

    clipboard: bool = False
    """:data:`CLIPBOARD` is there and must not be shown."""

    etag_time: bool = False
    """The ETag tells the mtime's fraction of a second."""

    one_answer: bool = False
    """Every answer ends its connection without saying so: a second request on it may be lost."""

    folder_slash: bool = False
    """DELETE, COPY and MOVE of a folder need a trailing slash, of a file none."""

    mkcol_blind: bool = False
    """MKCOL says 201 to a name that is taken."""

    list_slash: bool = False
    """A folder is listed in one request if its path ends with a slash, in two otherwise."""

    exact_dates: bool = False
    """``getlastmodified`` may be set with a fraction of a second, in ISO 8601."""

    properties_writable: bool = True
    """PROPPATCH of live properties is worth a try (phodav says 200 and litters xattrs)."""

    used_is_cheap: bool = True
    """``quota-used-bytes`` may be asked for (phodav walks the whole share for it)."""

    whole_request: int = 0
    """Bytes of a PUT, head and body, that are taken whole or not at all."""

    ranges: bool | None = None
    """Whether a ranged GET is cheap whatever the file's size."""

    keeps_mode: bool = False
    """Whether PUT on an existing file keeps its mode."""


PHODAV = Quirks(
    # Measured with 3.0 in spice-gtk 0.42: the close follows the answer, and a PUT
    # that was sent before it arrived got no answer.
    one_answer=True,
    display_names=True,
    mend_ampersands=True,
    clipboard=True,
    etag_time=True,
    properties_writable=False,
    used_is_cheap=False,
    # libsoup's first read of a connection: of 490 requests up to this size that
    # were cut, none left a part; at 60,000 bytes parts were seen.
    whole_request=8192,
    ranges=False,
    keeps_mode=True,
)

NAMELESS = Quirks(mkcol_blind=True)
"""A server without a ``Server`` header, rclone's for one."""

BY_SERVER: tuple[tuple[str, Quirks], ...] = (
    ("phodavserver", PHODAV),
    (
        "hvbridge",
        Quirks(etag_time=True, exact_dates=True, whole_request=ANY_SIZE, ranges=True, keeps_mode=True),
    ),
    ("apache", Quirks(ranges=True, list_slash=True)),
    ("nginx", Quirks(ranges=True, folder_slash=True)),
    ("wsgidav", Quirks(ranges=True, keeps_mode=True)),
)


def quirks_of(server: str) -> Quirks:
    """The quirks of the server with this ``Server`` header (``""``: nothing was heard of it yet)."""
    low = server.lower()
    if not low:
        return NAMELESS
    for prefix, quirks in BY_SERVER:
        if low.startswith(prefix):
            return quirks
    return Quirks()
