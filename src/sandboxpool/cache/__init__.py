"""A cache that every sandbox of a worker shares, or those of all workers."""

from ._cache import BlockingCache, Cache, RequestCache
from ._redis import RedisStore
from ._stats import CacheStatistics

__all__ = ("BlockingCache", "Cache", "CacheStatistics", "RedisStore", "RequestCache")
