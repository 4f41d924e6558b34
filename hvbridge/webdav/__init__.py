"""The WebDAV client: httpx over mux streams, webdav4, fsspec, and the quirks of servers."""
