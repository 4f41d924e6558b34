"""All channel I/O: openers and transports by URL, sessions, blocking streams."""
