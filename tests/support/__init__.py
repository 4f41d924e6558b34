"""What tests share: real peers, small peers of our own, certificates."""
