"""How the C library keeps memory that was freed."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h> of glibc: parameter, and what it is without being set.
_TRIM_THRESHOLD, _TRIM_DEFAULT = -1, 128 * 1024
_MMAP_THRESHOLD, _MMAP_DEFAULT = -3, 128 * 1024
_ARENA_MAX, _ARENA_DEFAULT = -8, 0
_ALL = 2**30


@contextmanager
def kept_when_freed() -> Iterator[None]:
    """Let freed buffers serve the next ones inside this block; they go back to the kernel after it.

    A decoder layer's activations take tens of megabytes and come and go by the thousand. glibc maps
    each anew, and the kernel clears it page by page: a seventh of a layer's forward on a CPU. All
    threads use one arena meanwhile, since the others cannot hold so much. Where the C library is
    another one, nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_ARENA_MAX, 1)
    libc.mallopt(_MMAP_THRESHOLD, _ALL)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        libc.mallopt(_ARENA_MAX, _ARENA_DEFAULT)
        libc.mallopt(_MMAP_THRESHOLD, _MMAP_DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)
