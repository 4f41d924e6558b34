"""Take the folder that a SPICE client shares on the hypervisor, mount it, hand it to any guest."""

__version__ = "0.1.0"
