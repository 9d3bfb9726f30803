"""A file that travels in a job's data: `{"restq_file": {"path", "content", "executable"}}`, content in base64.

What comes out of a queue is not trusted: it is written below the current directory and nowhere else, and
nothing of it is ever run or deserialized into more than bytes. The content is not compressed: two machines
may compress the same file differently, and the same job with other data is refused.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from restq.errors import RestqError

KEY = "restq_file"


class CarriedFileError(RestqError, ValueError):
    """The file cannot be carried or cannot be written. The message says which and why."""

    code = "carried_file_invalid"


@dataclass(frozen=True)
class CarriedFile:
    """A file as it travels. Of its permissions only "may be executed" does; the rest is the umask's."""

    path: str
    content: bytes
    executable: bool

    def write(self, anywhere: bool) -> None:
        """Put it in place at once: whoever looks sees the old file or the new one, whole.

        Missing directories are made. Unless `anywhere`, neither an absolute path nor `..` nor a symbolic
        link on the way is followed; where the path itself is one, it is replaced.
        """
        try:
            if anywhere:
                directory, name = os.path.split(self.path)
                os.makedirs(directory or ".", exist_ok=True)
                descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
            else:
                *directories, name = parts_below(self.path)
                descriptor = _descend(directories)
            try:
                self._replace(descriptor, name)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            if isinstance(error, RestqError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise CarriedFileError(f"its file {self.path!r} cannot be written: {reason}") from error

    def _replace(self, directory: int, name: str) -> None:
        temporary = f".restq-{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o777 if self.executable else 0o666, dir_fd=directory)
        try:
            with open(descriptor, "wb") as file:
                file.write(self.content)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise


def pack(path: str, anywhere: bool, bytes_max: int) -> dict[str, Any]:
    """The job data that carries the file. CarriedFileError where it cannot be read or `pull` would refuse it."""
    if not anywhere:
        path = "/".join(parts_below(path))
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise CarriedFileError(f"{path!r} is not a regular file")
        if found.st_size > bytes_max:
            raise CarriedFileError(f"{path!r} has {found.st_size} bytes, and a job carries at most {bytes_max}")
        with open(path, "rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise CarriedFileError(f"{path!r} cannot be read: {error.strerror}") from error
    executable = bool(found.st_mode & stat.S_IXUSR)
    return {KEY: {"path": path, "content": base64.b64encode(content).decode(), "executable": executable}}


def unpack(data: dict[str, Any]) -> CarriedFile:
    """The file in a job's data. CarriedFileError where it is not one as `pack` makes it."""
    value = data[KEY]
    if not isinstance(value, dict):
        raise CarriedFileError("its file is not an object with path and content")
    path, content, executable = value.get("path"), value.get("content"), value.get("executable", False)
    if not isinstance(path, str) or not isinstance(content, str) or not isinstance(executable, bool):
        raise CarriedFileError("its file has no path and content of text")
    try:
        return CarriedFile(path, base64.b64decode(content, validate=True), executable)
    except (binascii.Error, ValueError) as error:
        raise CarriedFileError(f"the content of its file {path!r} is not base64") from error


def parts_below(path: str) -> Sequence[str]:
    """The parts of a path that stays below the current directory; CarriedFileError for any other."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or path.endswith("/") or ".." in parts or "\0" in path:
        raise CarriedFileError(
            f"the file {path!r} is not one below the current directory: --files-anywhere, for add and pull, allows it"
        )
    return parts


def _descend(directories: Sequence[str]) -> int:
    """A descriptor of the directory below the current one, made if need be; no link is followed on the way.

    Each step starts from the descriptor of the last, so that nobody can put a link in between.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(".", flags)
    for name in directories:
        above = descriptor
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
            descriptor = os.open(name, flags, dir_fd=above)
        finally:
            os.close(above)
    return descriptor
