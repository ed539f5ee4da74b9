"""Count file descriptors before they run out."""

from __future__ import annotations

import errno
import os
import sys

from sandboxpool._exceptions import ThreadLimitError

# Left for connections and for what the app opens.
_SPARE = 16


def limit_of_files() -> int | None:
    """Return how many files this process may have open, `None` if that is not limited."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def check_files(wanted: int, what: str, promised: int = 0) -> None:
    """Refuse what would leave (nearly) no file descriptor.

    Args:
        wanted: How many it takes.
        what: What takes them.
        promised: How many others have been allowed to take and may not have taken yet.

    Raises:
        ThreadLimitError: With the limit, and the remedy.
    """
    limit = limit_of_files()
    if not wanted or limit is None:
        return
    try:
        # The system gives the lowest number that is free, so it tells how many are taken, about.
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
    except OSError:
        lowest = limit
    if lowest + promised + wanted + _SPARE > limit:
        raise no_files(wanted, what, f"{min(lowest + promised, limit)} of the {limit}")


def no_files(wanted: int, what: str, taken: str) -> ThreadLimitError:
    """Return the error that says that file descriptors have run out."""
    return ThreadLimitError(
        f"{what} needs {wanted} file descriptors, and {taken} that this "
        "process may have are taken. Raise the limit (`ulimit -n 65536`), lower max_size, or "
        "choose thread_backend='asyncio', which takes the fewest."
    )


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that there is no further file descriptor."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
