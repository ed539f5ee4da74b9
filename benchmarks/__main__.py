"""Run the benchmarks: `python -m benchmarks [--quick] [name ...]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Callable

from . import blocking, cache, clone, http, modules, pool, request, resources, testing

# Each measures one part of the library and prints its tables.
PARTS: dict[str, Callable[[bool], object]] = {
    "pool": pool.run,
    "clone": lambda quick: clone.main(),
    "modules": modules.run,
    "request": request.run,
    "http": http.run,
    "cache": cache.run,
    "resources": resources.run,
    "testing": testing.run,
    "blocking": blocking.run,
}
# Run unless others are named: that about code that blocks takes a quarter of an hour by itself.
_DEFAULT = [name for name in PARTS if name != "blocking"]

_MEASURED = (
    "anyio",
    "trio",
    "psycopg-pool",
    "asyncpg",
    "sqlalchemy",
    "asyncio-connection-pool",
    "redis",
    "cachetools",
    "aiocache",
)


def main() -> None:
    """Run the parts that were asked for, all but `blocking` by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="name", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(f"{platform.python_implementation()} {platform.python_version()}, ", end="")
    print(", ".join(_version(name) for name in _MEASURED))
    print('"measured" is the ratio of the fastest rounds, "median" that of each round\'s ratio')
    for name in arguments.parts or _DEFAULT:
        PARTS[name](arguments.quick)


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} missing"


if __name__ == "__main__":
    main()
