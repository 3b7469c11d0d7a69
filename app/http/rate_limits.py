"""How often a token may be used: counted for each, told in the answer's headers, refused beyond it.

The headers are those of the IETF's draft on RateLimit fields. Nothing is asked of the database: the token's row, which
is read anyway, says its limit. A token with a limit of its own is counted in Redis, over all web processes; where there
is none, and for all others, each process counts for itself.
"""

from __future__ import annotations

import functools
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Scope

from app.errors import TooMany
from app.services.kernel.actors import Actor
from app.settings import get_settings

SCOPE_KEY = "illume.rate_limit"
WINDOW_SECONDS = 60
REDIS_TIMEOUT = 0.1
RETRY_AFTER = 10.0  # how long a Redis that failed is left alone

Headers = tuple[tuple[bytes, bytes], ...]


class UsageCounter:
    """Counts uses, in Redis where there is one and it answers, else in this process."""

    def __init__(self, redis_url: str) -> None:
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared = None
        if redis_url:
            options = {"socket_timeout": REDIS_TIMEOUT, "socket_connect_timeout": REDIS_TIMEOUT}
            storage = RedisStorage(redis_url, wrap_exceptions=True, **options)  # type: ignore[arg-type]
            self._shared = FixedWindowRateLimiter(storage)
        self._paused_until = 0.0

    def count(self, item: RateLimitItem, key: str, *, shared: bool) -> tuple[bool, int, int]:
        """Count one use: whether it is within the limit, how many are left, and in how many seconds all are again."""
        if shared and self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                return hit(self._shared, item, key)
            except StorageError:
                self._paused_until = time.monotonic() + RETRY_AFTER
        return hit(self._own, item, key)


def hit(limiter: FixedWindowRateLimiter, item: RateLimitItem, key: str) -> tuple[bool, int, int]:
    """One use more, and where that leaves the key. A window that seems to last longer than one can is begun anew: this
    machine's clock was put back."""
    if limiter.get_window_stats(item, key).reset_time - time.time() > item.get_expiry() + 1:
        limiter.clear(item, key)
    allowed = limiter.hit(item, key)
    stats = limiter.get_window_stats(item, key)
    return allowed, stats.remaining, max(1, round(stats.reset_time - time.time()))


@functools.lru_cache(maxsize=4)
def get_counter(redis_url: str) -> UsageCounter:
    """The counter of this process for the Redis at an address."""
    return UsageCounter(redis_url)


@functools.lru_cache(maxsize=256)
def per_minute(quota: int) -> RateLimitItem:
    """So many a minute."""
    return RateLimitItemPerMinute(quota)


def count_use(scope: Scope, actor: Actor) -> None:
    """Count a use of the actor's token, once for a request, and note in its scope what its answer is to say.

    Raises `TooMany`.
    """
    if SCOPE_KEY in scope:
        return
    settings = get_settings()
    quota = actor.requests_per_minute or settings.token_requests_per_minute
    if actor.token_id is None or not quota:
        return
    own = actor.requests_per_minute is not None
    key = f"illume-token-{actor.token_id}"
    allowed, left, seconds = get_counter(settings.redis_url).count(per_minute(quota), key, shared=own)
    scope[SCOPE_KEY] = rate_limit_headers(quota, left, seconds)
    if not allowed:
        detail = f"This token may be used {quota} times a minute: wait {seconds} seconds."
        raise TooMany(detail, retry_after=seconds)


def rate_limit_headers(quota: int, left: int, seconds: int) -> Headers:
    """What the answer says: the limit, and what is left of it until when."""
    policy, rest = f'"token";q={quota};w={WINDOW_SECONDS}', f'"token";r={left};t={seconds}'
    return ((b"ratelimit-policy", policy.encode()), (b"ratelimit", rest.encode()))
