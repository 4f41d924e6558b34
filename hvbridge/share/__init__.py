"""The role of the SPICE client: serve a folder over the streams that the host opens."""
