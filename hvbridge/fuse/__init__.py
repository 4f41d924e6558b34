"""The adapter to the kernel: fusepy operations, errno, mounting and unmounting."""
