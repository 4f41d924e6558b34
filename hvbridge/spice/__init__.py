"""The wire, without I/O and without a clock: mux frames, link stage, messages, the port."""
