"""A cache that every sandbox of a worker shares, or those of all workers."""

from ._cache import Cache, RequestCache
from ._operations import BlockingCache
from ._redis import RedisStore
from ._stats import CacheStatistics

__all__ = ("BlockingCache", "Cache", "CacheStatistics", "RedisStore", "RequestCache")
