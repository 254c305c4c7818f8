"""Shoebox: images from registries, one squashfs file each, run as the user."""

VERSION = "0.1.0"
