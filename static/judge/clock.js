// A stopwatch for the time that a prompt is looked at.

// `before` is the seconds on it already.
export function makeClock(before = 0) {
  let total = 1000 * before;
  let startedAt = null;
  return {
    start() {
      startedAt ??= performance.now();
    },
    stop() {
      if (startedAt !== null) total += performance.now() - startedAt;
      startedAt = null;
    },
    seconds() {
      return (total + (startedAt === null ? 0 : performance.now() - startedAt)) / 1000;
    },
  };
}
