"""Rate limits of tokens: counted, reported in response headers, enforced.

The headers follow the IETF draft on RateLimit fields. No query is made for it: the token's row, which is read anyway,
holds its limit. A token with a limit of its own is counted in Redis, over all web processes. Without Redis, and for all
other tokens, each process counts for itself.
"""

from __future__ import annotations

import functools
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Scope

from app import broker
from app.errors import TooMany
from app.services.kernel.actors import Actor
from app.settings import get_settings

SCOPE_KEY = "illume.rate_limit"
WINDOW_SECONDS = 60
REDIS_TIMEOUT = 0.1
RETRY_AFTER = 10.0  # how long a failed Redis is left alone

Headers = tuple[tuple[bytes, bytes], ...]


class OwnWindows:
    """Fixed windows counted in this process alone.

    The library's memory storage starts a thread every 10 ms to forget windows that have ended: a seventh of the time
    that a claim took the web process.
    """

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}
        self._cleared_at = time.monotonic()

    def count(self, item: RateLimitItem, key: str) -> tuple[bool, int, int]:
        """Count one use. Returns whether it is allowed, how many are left, and the seconds until the reset."""
        now, length = time.monotonic(), item.get_expiry()
        if now - self._cleared_at >= length:
            self._windows = {name: one for name, one in self._windows.items() if now - one[0] < length}
            self._cleared_at = now
        began, used = self._windows.get(key, (now, 0))
        if now - began >= length:
            began, used = now, 0
        self._windows[key] = began, used + 1
        return used < item.amount, max(0, item.amount - used - 1), max(1, round(began + length - now))


class UsageCounter:
    """Counts uses: in Redis if it is configured and answers, else in this process."""

    def __init__(self, redis_url: str) -> None:
        self._own = OwnWindows()
        self._shared = None
        if redis_url:
            pool = broker.connect(redis_url, seconds=REDIS_TIMEOUT).connection_pool
            storage = RedisStorage("redis://", connection_pool=pool, wrap_exceptions=True)
            self._shared = FixedWindowRateLimiter(storage)
        self._paused_until = 0.0

    def count(self, item: RateLimitItem, key: str, *, shared: bool) -> tuple[bool, int, int]:
        """Count one use. Returns whether it is allowed, how many are left, and the seconds until the reset."""
        if shared and self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                return hit(self._shared, item, key)
            except StorageError:
                self._paused_until = time.monotonic() + RETRY_AFTER
        return self._own.count(item, key)


def hit(limiter: FixedWindowRateLimiter, item: RateLimitItem, key: str) -> tuple[bool, int, int]:
    """Count one use of `key`.

    A window that seems to last longer than possible is started afresh: this machine's clock was set back.
    """
    if limiter.get_window_stats(item, key).reset_time - time.time() > item.get_expiry() + 1:
        limiter.clear(item, key)
    allowed = limiter.hit(item, key)
    stats = limiter.get_window_stats(item, key)
    return allowed, stats.remaining, max(1, round(stats.reset_time - time.time()))


@functools.lru_cache(maxsize=4)
def get_counter(redis_url: str) -> UsageCounter:
    """Return this process's counter for the Redis at `redis_url`."""
    return UsageCounter(redis_url)


@functools.lru_cache(maxsize=256)
def per_minute(quota: int) -> RateLimitItem:
    """A limit of `quota` uses a minute."""
    return RateLimitItemPerMinute(quota)


def count_use(scope: Scope, actor: Actor) -> None:
    """Count a use of the actor's token, once per request, and store the rate limit headers in the request's scope.

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
        detail = f"This token may be used {quota} times a minute: try again in {seconds} seconds."
        raise TooMany(detail, retry_after=seconds)


def rate_limit_headers(quota: int, left: int, seconds: int) -> Headers:
    """The response headers: the limit, what is left of it, and when it is reset."""
    policy, rest = f'"token";q={quota};w={WINDOW_SECONDS}', f'"token";r={left};t={seconds}'
    return ((b"ratelimit-policy", policy.encode()), (b"ratelimit", rest.encode()))
