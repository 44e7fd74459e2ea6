"""`make soak`: a thousand streams at once through a gateway process, whose clients stall, leave and ask again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.router.streams import KINDS, check, run


def main() -> int:
    """Run, tell, check. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.thousand_streams")
    parser.add_argument("--streams", type=int, default=1000, help="at once (default: %(default)s)")
    parser.add_argument("--waves", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smallcall-soak-") as folder:
        course = asyncio.run(run(options.streams, options.waves, Path(folder)))
    print(f"{options.waves} waves of {options.streams} streams ({', '.join(KINDS)}), {time.monotonic() - began:.0f} s")
    print(f"requests {course.asked}, read to their end {len(course.complete)}, rows {len(course.rows)}")
    print("rows by (status, client left):", dict(course.tally()))
    print("MB at rest, then after each wave:", [round(one) for one in course.rss_mb], f"peak {course.peak_mb:.0f}")
    if options.waves > 1:
        growth_mb = (course.rss_mb[-1] - course.rss_mb[1]) / (options.waves - 1)
        print(f"MB a wave after the first: {growth_mb:+.1f}; what leaks grows with every wave")
    print("tasks at rest, then after each wave:", course.tasks)
    check(course, options.streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
