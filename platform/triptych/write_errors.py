"""Errors of a full disk or a place that cannot be written, as messages that name the place and the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import RunError, UserError

_REMEDY = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "the quota is used up: free some space, or choose another place",
    errno.EFBIG: "the file size limit (ulimit -f) is reached: raise it, or choose another place",
    errno.EACCES: "make it writable, or choose another place",
    errno.EPERM: "make it writable, or choose another place",
    errno.EROFS: "it is mounted read-only: choose another place",
}
_FULL = "No space left on device"  # libraries written in Rust and C++ pass on the text, not the errno


@contextmanager
def write_errors(url: str) -> Iterator[None]:
    """Turn a full disk or a refusal to write into a UserError that names the place."""
    try:
        yield
    except (UserError, RunError):
        raise
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0)
        if remedy is None:
            raise
        culprit = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot write {url}: {error.strerror}{culprit}; {remedy}") from error
    except Exception as error:
        if _FULL not in str(error):
            raise
        raise UserError(f"cannot write {url}: {_FULL}; {_REMEDY[errno.ENOSPC]}") from error
