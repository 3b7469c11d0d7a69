"""Positions in the feed."""

from __future__ import annotations

from sqlalchemy import text

from app.services.acceptance.positions import current_position
from tests.conftest import CommittedDatabase

SEEN = text("SELECT pg_visible_in_snapshot(CAST(:xid AS xid8), CAST(:at AS pg_snapshot))")
ASSIGN = text("SELECT CAST(pg_current_xact_id() AS text)")


class TestCurrentPosition:
    def test_what_is_under_way_is_not_in_it_but_for_the_own_transaction(self, committed_db: CommittedDatabase) -> None:
        with (
            committed_db.sessions() as earlier,
            committed_db.sessions() as mine,
            committed_db.sessions() as later,
            committed_db.sessions() as reader,
        ):
            before, own, after = (session.scalar(ASSIGN) for session in (earlier, mine, later))
            read, written = current_position(reader), current_position(mine)
            for session in (earlier, mine, later):
                session.commit()
            next_one = later.scalar(ASSIGN)
            later.commit()

            def seen(position: str) -> list[bool]:
                xids = (before, own, after, next_one)
                return [bool(reader.scalar(SEEN, {"xid": xid, "at": position})) for xid in xids]

            assert seen(read) == [False, False, False, False]
            assert seen(written) == [False, True, False, False]
            assert seen(current_position(reader)) == [True, True, True, True]
