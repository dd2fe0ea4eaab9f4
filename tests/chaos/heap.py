"""Heap: what the allocators of a process hold.

Invariant: this module is imported and never run, so that an actor of any process can be asked for its heap by name.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass

_MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 or later."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


@dataclass(frozen=True, slots=True)
class Heap:
    """What the allocators of a process hold."""

    used: int
    """Bytes that malloc gave out, to C, C++ and for Python's large objects."""
    free: int
    """Bytes that malloc keeps, free, between them."""
    blocks: int
    """Python's small objects."""

    @classmethod
    def of(cls, actor: object) -> Heap:
        """That of the process which calls this."""
        gc.collect()
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallinfo2.restype = _MallInfo
        found = glibc.mallinfo2()
        return cls(found.uordblks + found.hblkhd, found.fordblks, sys.getallocatedblocks())
