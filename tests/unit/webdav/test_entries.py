from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.config import Limits
from hvbridge.errors import FsError, IOFailed, NotDirectory, NotFound
from hvbridge.vfs.remote import Entry, Listing, Quota
from hvbridge.webdav.entries import entry_of, listing_of, path_of, quota_of
from hvbridge.webdav.multistatus import APACHE, DAV, RawResponse
from hvbridge.webdav.quirks import PHODAV, Quirks, quirks_of

LIMITS = Limits()
PLAIN = Quirks()


def raw(href: str, name: str | None = None, *, folder: bool = False, **properties: str) -> RawResponse:
    found = {DAV + "resourcetype": "", **{DAV + key: value for key, value in properties.items()}}
    if name is not None:
        found[DAV + "displayname"] = name
    return RawResponse(href=href, collection=folder, properties=found)


def listed(path: str, *responses: RawResponse, quirks: Quirks = PLAIN, prefix: str = "") -> Listing:
    return listing_of(path, responses, quirks, LIMITS, prefix).listing


def shown(listing: Listing) -> list[str]:
    return [entry.name for entry in listing.entries]


def test_hrefs_in_any_form() -> None:
    listing = listed(
        "/a b",
        raw("http://host:1/dav/a%20b/", folder=True),
        raw("/dav/a%20b/one"),
        raw("https://elsewhere/dav/a%20b/two/", folder=True),
        raw("three"),
        raw("/dav/a b/f%C3%BCnf"),
        raw("/dav/a%20b/%2525"),
        prefix="/dav",
    )
    assert shown(listing) == ["one", "two", "three", "f\u00fcnf", "%25"]
    assert listing.folder == Entry("a b", is_dir=True)
    assert listing.dropped == 0


@pytest.mark.parametrize(
    "href",
    [
        "/other/x",
        "/f/deep/x",
        "/f/..",
        "/f/.",
        "/f/%2e%2e",
        "/f/a%2Fb",
        "/f//x",
        "/f/a%00b",
        "/f/%FF",
        "/f/\ufffd",
        "/",
        "",
        "/f2",
        "/f/" + "x" * 256,
        "../x",
    ],
)
def test_members_that_cannot_be_are_dropped_and_counted(href: str) -> None:
    listing = listed("/f", raw("/f/", folder=True), raw(href), raw("/f/good"))
    assert shown(listing) == ["good"]
    assert listing.dropped == 1


def test_duplicates_and_untold_kinds_are_dropped() -> None:
    untold = RawResponse(href="/pipe", failed={DAV + "resourcetype": 404})
    refused = RawResponse(href="/secret", status=403)
    listing = listed("/", raw("/", folder=True), raw("/x"), raw("/x/", folder=True), untold, refused)
    assert shown(listing) == ["x"]
    assert listing.dropped == 3


def test_our_own_names_are_hidden_not_dropped() -> None:
    own = ".hvbridge-0123456789abcdef.part"
    listing = listed("/", raw("/", folder=True), raw(f"/{own}"), raw("/.spice-clipboard/", folder=True))
    assert shown(listing) == [".spice-clipboard"]
    assert listing.dropped == 0


def test_a_file_a_stranger_and_nothing() -> None:
    with pytest.raises(NotDirectory):
        listed("/x", raw("/x"))
    with pytest.raises(IOFailed, match="itself"):
        listed("/x", raw("/y/", folder=True), raw("/y/z"))
    with pytest.raises(IOFailed, match="itself"):
        listed("/x")
    with pytest.raises(NotFound):
        listed("/x", RawResponse(href="/x", status=404))


def test_values() -> None:
    entry = entry_of(
        "/f/x",
        [
            RawResponse(
                href="/f/x",
                properties={
                    DAV + "resourcetype": "",
                    DAV + "getcontentlength": "5",
                    DAV + "getetag": '"e"',
                    DAV + "getlastmodified": "Tue, 14 Nov 2023 22:13:20 GMT",
                    APACHE + "executable": "T",
                },
            )
        ],
        PLAIN,
    )
    assert entry == Entry("x", False, 5, 1_700_000_000 * 10**9, '"e"', True)


def test_one_entry_about_one_question() -> None:
    assert entry_of("/x", [raw("/other")], PLAIN).name == "x"  # a server may spell it otherwise
    assert entry_of("/x", [raw("/other"), raw("/x", getcontentlength="3")], PLAIN).size == 3
    for answer in ([], [raw("/a"), raw("/b")], [RawResponse(href="/x")]):
        with pytest.raises(IOFailed):
            entry_of("/x", answer, PLAIN)
    with pytest.raises(NotFound):
        entry_of("/x", [RawResponse(href="/x", status=404)], PLAIN)


def test_quota() -> None:
    answer = raw("/", folder=True)
    answer.properties |= {DAV + "quota-available-bytes": "7", DAV + "quota-used-bytes": "-1"}
    assert quota_of([answer]) == Quota(available=7, used=None)
    assert quota_of([]) == Quota()


# --- phodav -------------------------------------------------------------


def phodav(path: str, *responses: RawResponse) -> Listing:
    return listed(path, *responses, quirks=PHODAV)


def test_phodavs_names_are_its_displaynames() -> None:
    listing = phodav(
        "/",
        raw("http://x/R&D", "R&D", folder=True),
        raw("", "100% sure"),
        raw("http://x/a%20b", "a%20b"),
        raw("http://x/", "share", folder=True),
        raw("http://x/%2F", "%2F"),
        raw("http://x/bad%FF", "bad\ufffd (invalid encoding)"),
        raw("http://x/%EF%BF%BD", "\ufffd (invalid encoding)"),
        raw("http://x/.spice-clipboard", ".spice-clipboard", folder=True),
        raw("http://x/evil", "../evil"),
        raw("http://x/none"),
    )
    assert listing.folder.name == ""
    assert shown(listing) == ["R&D", "100% sure", "a%20b", "%2F", "\ufffd"]
    assert listing.dropped == 3


def test_phodavs_clipboard_is_shown_where_it_is_a_folder_of_that_name() -> None:
    listing = phodav(
        "/sub", raw("http://x/sub", "sub", folder=True), raw("http://x/sub/c", ".spice-clipboard")
    )
    assert shown(listing) == [".spice-clipboard"]


def test_phodavs_folder_among_its_members() -> None:
    old, new = '"1:1:1"', '"2:2:2"'
    found = listing_of(
        "/a/R&D",
        [
            raw("http://x/a/R&D/R&D", "R&D", folder=True, getetag=old),
            raw("", "R&D", folder=True, getetag=new),
            raw("", "R&D file"),
        ],
        PHODAV,
        LIMITS,
    )
    assert found.listing.folder.etag == new
    assert [(entry.name, entry.etag) for entry in found.listing.entries] == [("R&D", old), ("R&D file", None)]
    assert found.twin is None
    twins = listing_of("/100%", [raw("", "100%", folder=True), raw("", "100%", folder=True)], PHODAV, LIMITS)
    assert twins.twin == "100%"
    assert shown(twins.listing) == ["100%"]


def test_phodavs_file_is_no_folder() -> None:
    with pytest.raises(NotDirectory):
        phodav("/x", raw("http://x/x", "x"))
    with pytest.raises(IOFailed):
        phodav("/x", raw("", "a"), raw("", "b"))


anything = st.builds(
    RawResponse,
    href=st.one_of(st.text(max_size=20), st.sampled_from(["/", "/f", "/f/", "/f/a", "http://x/f/b"])),
    status=st.sampled_from([None, None, None, 200, 404]),
    collection=st.booleans(),
    properties=st.dictionaries(
        st.sampled_from(
            [DAV + "resourcetype", DAV + "displayname", DAV + "getetag", DAV + "getcontentlength"]
        ),
        st.text(max_size=12),
    ),
)


@given(st.lists(anything, max_size=6), st.sampled_from(["/", "/f"]), st.sampled_from([PLAIN, PHODAV]))
def test_whatever_comes_only_possible_names_are_shown(
    responses: list[RawResponse], path: str, quirks: Quirks
) -> None:
    try:
        listing = listed(path, *responses, quirks=quirks)
    except FsError:
        return
    names = shown(listing)
    assert len(set(names)) == len(names)
    assert len(names) + listing.dropped < len(responses) + 1
    for name in names:
        assert name not in ("", ".", "..")
        assert not {"/", "\0"} & set(name)
        assert len(name.encode(errors="surrogatepass")) <= 255


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1))
def test_a_quoted_name_comes_back(name: str) -> None:
    from urllib.parse import quote

    if "\ufffd" not in quote(name):
        assert path_of("http://h/dav/" + quote(name, safe=""), "/", "/dav") == "/" + name


def test_servers_are_known_by_their_header() -> None:
    assert quirks_of("PhodavServer libsoup/3.2.3") is PHODAV
    assert quirks_of("Apache/2.4.62 (Debian)").list_slash
    assert quirks_of("nginx/1.22.1").folder_slash
    assert quirks_of("hvbridge/0.1.0").whole_request > 1 << 60
    assert quirks_of("Something else") == Quirks()
