"""The files of SQLite, as it asks the system for them: a VFS that notes each call, and can refuse any.

It lies over SQLite's own VFS in the very library that Python's `sqlite3` uses, by way of ctypes: so the store under
test runs its own statements over its own SQLite, and no package, compiler or right is needed. A file's methods are
replaced where something changes: write, truncate, sync, delete, and the sync of a directory, which SQLite does within
the first sync of a file that it created. With an exclusive lock the index of the log is kept in memory: there is no
shared memory to note (`shm_maps` counts what would be).

https://www.sqlite.org/c3ref/vfs.html and io_methods.html describe the two tables.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

SQLITE_OK = 0
SQLITE_FULL = 13
IOERR_WRITE = 10 | 3 << 8
IOERR_FSYNC = 10 | 4 << 8
IOERR_TRUNCATE = 10 | 6 << 8
IOERR_DELETE = 10 | 10 << 8
OPEN_CREATE = 0x4
NAME = b"recorded"

# What was called, and what a handler may answer for it: ("write", path, offset, data), ("truncate", path, size),
# ("sync", path), ("delete", path); and, only to be noted, ("create", path), ("sync directory", path of a file in it).
Call = tuple[Any, ...]
Handler = Callable[[Call], int]

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_ShmMap = CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, c_void_p)
_OpenDirectory = CFUNCTYPE(c_int, c_char_p, c_void_p)
_SetCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_bytes_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("app_data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("between", c_void_p * 11),
        ("set_call", c_void_p),
        ("get_call", c_void_p),
        ("next_call", c_void_p),
    )


class _Methods(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("between", c_void_p * 7),
        ("shm_map", c_void_p),
        ("after", c_void_p * 5),
    )


def library() -> ctypes.CDLL | None:
    """The SQLite of Python's `sqlite3`; None where it is a part of Python itself that can't be looked into."""
    try:
        found = ctypes.CDLL(_sqlite3.__file__)
        found.sqlite3_vfs_find.restype = c_void_p
        found.sqlite3_vfs_find.argtypes = (c_char_p,)
        found.sqlite3_vfs_register.argtypes = (c_void_p, c_int)
        found.sqlite3_vfs_unregister.argtypes = (c_void_p,)
    except (AttributeError, OSError):
        return None
    return found


class RecordedVfs:
    """A VFS over the usual one. `handler` is asked before each call; what it returns is the result, but SQLITE_OK."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._library = library()
        assert self._library is not None, "the SQLite of this Python can't be looked into"
        self._base_at = self._library.sqlite3_vfs_find(None)
        self._base = base = _Vfs.from_address(self._base_at)
        assert base.version >= 3, "the methods are where version 3 has them"
        self._vfs = _Vfs.from_buffer_copy(base)
        self._vfs.name = NAME
        self._vfs.next = None
        self._base_open = _Open(base.open)
        self._base_delete = _Delete(base.delete)
        self._kept: list[Any] = []  # callbacks and tables that SQLite has pointers to
        self._tables: dict[int, int] = {}  # the address of a table of methods to that of ours over it
        self._paths: dict[int, str] = {}  # by the address of an open file
        self._vfs.open = self._pointer(_Open(self._open))
        self._vfs.delete = self._pointer(_Delete(self._delete))
        self._opened_directory = c_void_p(_GetCall(base.get_call)(self._base_at, b"openDirectory"))
        self._base_open_directory = _OpenDirectory(self._opened_directory.value or 0)
        self._open_directory = _OpenDirectory(self._directory_opened)
        self.shm_maps = 0

    def _pointer(self, callback: Any) -> Any:
        self._kept.append(callback)
        return ctypes.cast(callback, c_void_p).value

    def start(self) -> None:
        """Be the VFS of all connections that are made from now on."""
        assert self._library is not None
        set_call = _SetCall(self._base.set_call)
        assert set_call(self._base_at, b"openDirectory", ctypes.cast(self._open_directory, c_void_p)) == SQLITE_OK
        assert self._library.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1) == SQLITE_OK

    def stop(self) -> None:
        """Be it no more. What was opened through it must be closed."""
        assert self._library is not None
        self._library.sqlite3_vfs_unregister(ctypes.addressof(self._vfs))
        self._library.sqlite3_vfs_register(self._base_at, 1)
        _SetCall(self._base.set_call)(self._base_at, b"openDirectory", self._opened_directory)
        assert not self._paths, f"still open: {self._paths}"

    # -- what SQLite calls ---------------------------------------------------------------------------------------------

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = ctypes.string_at(name).decode() if name else ""
        is_new = bool(path) and not os.path.exists(path)
        result = self._base_open(vfs, name, file, flags, out)
        if result != SQLITE_OK or not path:
            return int(result)
        if is_new:
            self._handler(("create", path))
        methods = ctypes.cast(file, POINTER(c_void_p))
        methods[0] = self._over(methods[0])
        self._paths[file] = path
        return SQLITE_OK

    def _delete(self, vfs: int, name: bytes, sync_directory: int) -> int:
        path = name.decode()
        if os.path.exists(path) and (refused := self._handler(("delete", path))):
            return refused
        return int(self._base_delete(vfs, name, sync_directory))

    def _directory_opened(self, name: bytes, out: int) -> int:
        """SQLite syncs what it opened, and closes it."""
        result = int(self._base_open_directory(name, out))
        if result == 0:
            self._handler(("sync directory", name.decode()))
        return result

    def _over(self, at: int) -> int:
        """A copy of a table of methods in which ours stand before what changes a file."""
        if at in self._tables:
            return self._tables[at]
        base = _Methods.from_address(at)
        close, write = _Close(base.close), _Write(base.write)
        truncate, sync = _Truncate(base.truncate), _Sync(base.sync)
        handler, paths = self._handler, self._paths

        def on_close(file: int) -> int:
            del paths[file]
            return int(close(file))

        def on_write(file: int, data: int, size: int, offset: int) -> int:
            call = ("write", paths[file], offset, ctypes.string_at(data, size))
            return handler(call) or int(write(file, data, size, offset))

        def on_truncate(file: int, size: int) -> int:
            return handler(("truncate", paths[file], size)) or int(truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            return handler(("sync", paths[file])) or int(sync(file, flags))

        table = _Methods.from_buffer_copy(base)
        table.close = self._pointer(_Close(on_close))
        table.write = self._pointer(_Write(on_write))
        table.truncate = self._pointer(_Truncate(on_truncate))
        table.sync = self._pointer(_Sync(on_sync))
        if base.version >= 2 and base.shm_map:
            table.shm_map = self._pointer(self._counted(_ShmMap(base.shm_map)))
        self._kept.append(table)
        self._tables[at] = ctypes.addressof(table)
        return self._tables[at]

    def _counted(self, shm_map: Any) -> Any:
        def on_shm_map(file: int, region: int, size: int, extend: int, out: int) -> int:
            self.shm_maps += 1
            return int(shm_map(file, region, size, extend, out))

        return _ShmMap(on_shm_map)


@contextmanager
def recorded(handler: Handler) -> Iterator[RecordedVfs]:
    """Have the handler asked about every call of the stores that are opened and closed meanwhile."""
    vfs = RecordedVfs(handler)
    vfs.start()
    try:
        yield vfs
    finally:
        vfs.stop()
