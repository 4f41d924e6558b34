"""libvirt: the only part that imports libvirt-python."""
