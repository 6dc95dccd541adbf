"""Named files in archives or folders, read where they are: nothing is unpacked on disk."""

import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from vitjax.errors import UserError

# What reading a damaged or truncated file raises.
DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


def damaged(file: pathlib.Path, what: object, md5: str | None = None) -> UserError:
    """The error of a file that cannot be what was published."""
    what = str(what).partition("\n")[0].rstrip(".:")  # tarfile adds a line for each kind of compression
    whole = f", whose MD5 is {md5}" if md5 else ""
    return UserError(f"{file} is damaged or truncated: {what}. Fetch it again{whole}.")


def tar_files(
    file: pathlib.Path, wanted: Callable[[str], bool], md5: str | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the regular files that are `wanted` by the last part of their name.

    Raises:
      UserError: for a damaged archive.
    """
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if member.isfile() and wanted(name):
                    content = archive.extractfile(member)
                    assert content is not None  # of a regular file
                    yield name, content.read()
    except DAMAGED as error:
        raise damaged(file, error, md5) from error


class ZipFiles:
    """The files of a zip archive: `names`, `read(name)`. The archive is opened in each process that reads."""

    def __init__(self, path: pathlib.Path, md5: str | None = None):
        self.path = path
        self._md5 = md5
        self._archive: zipfile.ZipFile | None = None

    def __getstate__(self):
        return self.__dict__ | {"_archive": None}

    def names(self) -> list[str]:
        """All files, by their paths in the archive."""
        return [info.filename for info in self._opened().infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        """The content of a file; raises UserError if it is damaged."""
        try:
            return self._opened().read(name)
        except DAMAGED as error:
            raise damaged(self.path, f"{name}: {error}", self._md5) from error

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            try:
                self._archive = zipfile.ZipFile(self.path)
            except DAMAGED as error:
                raise damaged(self.path, error, self._md5) from error
        return self._archive


class FolderFiles:
    """The files below a folder: `names`, `read(name)`."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def names(self) -> list[str]:
        """All files, by their paths below the folder."""
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.path / name).read_bytes()
