"""What QEMU can be given of a mount: vvfat, virtio-fs, MTP."""
