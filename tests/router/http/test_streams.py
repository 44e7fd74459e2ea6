"""Many streams whose clients stall, leave and ask again; `make soak` is the same with a thousand."""

from pathlib import Path

import pytest

from tests.router.streams import check, run


@pytest.mark.slow
async def test_many_streams_lose_no_row_and_leave_nothing_behind(tmp_path: Path) -> None:
    """A hundred streams at once, three times: each has its row, no task stays, no stream is held that is not read."""
    course = await run(100, 3, tmp_path)
    check(course, 100)
