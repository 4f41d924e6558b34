"""Filesystem semantics, caches, spool and uploads; knows no HTTP and no FUSE."""
