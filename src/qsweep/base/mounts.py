"""What kind of file system a file lies on, and whether other machines may have it, too."""

from pathlib import Path

# File systems of one host; what is not among them may be shared by several.
_LOCAL = {
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay", "apfs",
}  # fmt: skip


def kind_of(file: Path) -> str:
    """The kind of file system that a file is on, or would be; empty where that cannot be seen."""
    import psutil

    place = file.absolute().resolve()
    holding = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    # Of two at one place the later one is seen.
    mount = max(reversed(holding), key=lambda p: len(p.mountpoint), default=None)
    return mount.fstype if mount is not None else ""


def is_local(file: Path) -> bool:
    """Whether a file lies on a disk of this host, for all that can be seen of it."""
    return kind_of(file) in _LOCAL
