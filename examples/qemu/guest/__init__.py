"""A small Linux guest, made of Debian packages, to see the devices from a virtual machine's side.

``image`` builds a kernel and an initramfs, ``vm`` boots them and runs commands in
the guest. Needs Python's standard library only, QEMU, and apt.
"""
