"""Folders and files that appear whole or not at all, and what is said where they cannot."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO

from fourfold.errors import OutputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def absolute(place: Path) -> Path:
    """``place`` with all folders above it, and a name of its own, which ``.`` and ``..`` have not."""
    return place.resolve() if place.name in ("", "..") else place.absolute()


def require_free(destination: Path) -> None:
    """Raise :class:`OutputError` unless ``destination`` is absent or an empty folder."""
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists() or destination.is_symlink():
        raise OutputError(f"{destination}: output folder is not empty; choose another or remove it")


def require_space(destination: Path, needed_bytes: int) -> None:
    """Raise :class:`OutputError` when the file system of ``destination`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(_nearest(destination)).free
    if free < needed_bytes:
        raise OutputError(
            f"{destination}: needs {needed_bytes / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free there"
        )


def require_writable(path: Path) -> None:
    """Raise :class:`OutputError` unless a file can be written at ``path``; nothing is made yet.

    For commands that work long before they write.
    """
    with explained(path):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file, such as {path / 'NAME'}")
        needed = [path] if path.exists() else []
        if path.is_file() or not path.exists():
            needed.append(_nearest_folder(path.resolve().parent, path))
        for place in needed:
            if not os.access(place, os.W_OK):
                raise OutputError(f"{path}: {place} cannot be written; choose another place or mend its permissions")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there; :class:`OutputError` says why one cannot be made."""
    with explained(path):
        _nearest_folder(path, path)
        path.mkdir(parents=True, exist_ok=True)


def _nearest_folder(place: Path, path: Path) -> Path:
    """Where what ``place`` lacks can be made, for the sake of ``path``."""
    found = _nearest(place)
    if not found.is_dir():
        raise OutputError(f"{path}: {found} is a file, not a folder; choose another place")
    return found


def _nearest(path: Path) -> Path:
    """``path`` or the first above it that is there."""
    place = absolute(path)
    return next(p for p in (place, *place.parents) if p.exists())


def partial_of(destination: Path) -> Path:
    """The sibling in which ``destination`` is made."""
    return destination.with_name(f".{destination.name}.partial")


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``destination`` when the block ends well.

    On any failure, interruption included, the sibling is removed. A killed process leaves a sibling named
    ``.NAME.partial``, which the next run of the same stage removes first; one that another run is writing is an
    :class:`OutputError`. So is a full disk or a missing permission, with the place named.
    """
    destination = absolute(destination)
    require_free(destination)
    partial = partial_of(destination)
    with explained(destination), _hold_anew(partial, destination):
        try:
            yield partial
            sync_folder(partial)
            stood_here = is_current(destination)
            # An empty destination folder gives way; os.replace would refuse a full one.
            os.replace(partial, destination)
            if stood_here:
                # The folder this process stood in is no more; relative paths go on from the one in its place.
                os.chdir(destination)
            _sync(destination.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_current(folder: Path) -> bool:
    """Whether this process, and the shell that started it, stand in ``folder``."""
    return folder.is_dir() and folder.samefile(".")


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a stream that becomes the file ``path`` when the block ends well; folders above it are made.

    A link's target is replaced, not the link, and keeps its permissions; a terminal, a pipe or the shell's own file
    (``/dev/stdout``) is written to as it is. :class:`OutputError` names the file and says why it cannot be written;
    what was there before then still is.
    """
    require_writable(path)
    with explained(path):
        if path.exists() and (not path.is_file() or _shells_own(path) is not None):
            own = _shells_own(path)
            with path.open("wb") if own is None else os.fdopen(os.dup(own), "wb") as stream:
                yield stream
            return
        place = path.resolve()
        make_folder(place.parent)
        # Two writers of one file must not meet in one partial.
        partial = place.with_name(f".fourfold-{token_hex(8)}.partial")
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _put(partial, place)
        finally:
            partial.unlink(missing_ok=True)


def _shells_own(path: Path) -> int | None:
    """The standard output or error that is the file at ``path``: opened anew it would be written over."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream.fileno()
        except (OSError, ValueError):
            continue  # no file, as where a test or a notebook listens
    return None


def _put(partial: Path, place: Path) -> None:
    """Make ``partial`` the file at ``place``, in one step unless that is a mount of its own, as containers have."""
    if place.exists():
        shutil.copymode(place, partial)
    try:
        os.replace(partial, place)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        shutil.copyfile(partial, place)


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as :func:`atomic_file` does."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


@contextmanager
def _hold_anew(partial: Path, destination: Path) -> Iterator[None]:
    """Make ``partial`` an empty folder and hold it; a killed run's is removed, for the system let go of its hold."""
    if partial.exists():
        with hold_folder(partial, destination):
            try:
                shutil.rmtree(partial)
            except OSError as error:
                raise explain_os_error(error, partial) from error
    held = False
    try:
        try:
            partial.mkdir(parents=True)
        except FileExistsError:
            raise _being_written(destination) from None
        with hold_folder(partial, destination):
            held = True
            yield
    except OutputError:
        raise  # another run's folder, or one that is gone already
    except BaseException:
        # An interruption may come between making the folder and holding it.
        if not held:
            with suppress(OutputError, OSError), hold_folder(partial, destination):
                shutil.rmtree(partial)
        raise


@contextmanager
def hold_folder(folder: Path, destination: Path) -> Iterator[None]:
    """Hold ``folder`` for the run that writes ``destination``, until the block ends or the process does.

    Raises :class:`OutputError` when another run holds it, or has just removed it.
    """
    with explained(folder):
        descriptor = _locked(folder)
    if descriptor is None:
        raise _being_written(destination)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The folder, opened and locked; None when another run holds it, or has removed it since it was seen."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _being_written(destination: Path) -> OutputError:
    return OutputError(f"{destination}: another run is writing it; wait for it, or choose another --output")


def sync_folder(folder: Path) -> None:
    """Force files and names of ``folder`` to disk, so that the rename after it cannot outlive its contents."""
    for path in (*sorted(folder.rglob("*")), folder):
        if path.is_file() or path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full_disk(error: OSError) -> bool:
    """Whether the system has no room for what was to be written: no space, or a limit on a file's size."""
    return error.errno in (*_NO_SPACE, errno.EFBIG)


@contextmanager
def explained(destination: Path) -> Iterator[None]:
    """Turn what the operating system refuses in the block into the :class:`OutputError` that tells of it."""
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, destination) from error


def explain_os_error(error: OSError, destination: Path) -> OutputError:
    """The :class:`OutputError` that tells what the operating system refused, and where.

    What it refused is not always ``destination``: a source's file that may not be read, an interpreter that may not be
    started. Such a place is named instead.
    """
    elsewhere = _elsewhere(error, destination)
    if error.errno in _NO_SPACE:
        return OutputError(f"{elsewhere or destination}: the disk is full; nothing was left half-written")
    if elsewhere is not None:
        return OutputError(
            f"{elsewhere}: {error.strerror}, so {destination} was not made; mend that and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"{destination}: cannot be written ({error.strerror})")
    return OutputError(f"{destination}: {error.strerror or error}")


def _elsewhere(error: OSError, destination: Path) -> Path | None:
    """The place that ``error`` names, unless it is below ``destination``, beside it, or a folder above it."""
    # A copy names two files, and the one that it reads first; no read ever lacked room.
    name = error.filename2 if is_full_disk(error) and error.filename2 is not None else error.filename
    # A name without a folder is one that was looked for in an open folder, which is always one of ours.
    if not isinstance(name, str) or not Path(name).is_absolute():
        return None
    place, whole = Path(name), destination.absolute()
    partial = partial_of(whole)
    own = place.parent == whole.parent or whole.is_relative_to(place)
    return None if own or place.is_relative_to(whole) or place.is_relative_to(partial) else place
