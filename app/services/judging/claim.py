"""Claims: the statement by which a critic claims a candidate set. `docs/claim.md` holds its plan, and the reasons."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from app.db.judging_pool import Call, Transaction, Values, statement
from app.models import Role
from app.services.kernel.actors import Actor
from app.services.projects.access import project_for
from app.services.quality import standings

RETRIES = 20
PAUSE = 0.02
"""Seconds at most before a claim that lost its set to another critic is tried again."""
HEAD = 24
"""How many sets at the head of the order are looked at, before the search goes on where it once ended."""

# A critic's rows are asked for as a range of the index that begins with them. Asked for by `critic_id = ...` and in the
# order of ids, the planner may walk the primary key back from its end, past everything others did meanwhile.
LAST = 2**63 - 1

# What a critic gets, as JSON: the prompt without references and metadata, the candidates in the order they are shown.
# `a` is the assignment, `s` its candidate set, `p` its prompt. The state of a prompt would tell gold from others.
CLAIM_JSON = """
jsonb_build_object(
    'id', a.id::text,
    'state', a.state,
    'expires_at', to_char(a.expires_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'prompt', jsonb_build_object(
        'id', p.id::text,
        'external_id', p.external_id,
        'split', p.split,
        'state', CASE WHEN a.state = 'open' THEN 'ready' WHEN a.purpose = 'work' THEN p.state ELSE 'judged' END,
        'question', p.question,
        'answer', coalesce(p.answer, s.answer),
        'images', (
            SELECT jsonb_agg(jsonb_build_object(
                'sha256', i.sha256, 'url', '/api/v1/images/' || i.sha256, 'width', i.width, 'height', i.height
            ) ORDER BY pi.position)
            FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
        )
    ),
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text) ORDER BY array_position(a.shown, c.id))
        FROM candidates c WHERE c.candidate_set_id = s.id
    )
)
"""

# Whether the critic did not have the set for this purpose before; worded as its unique index is. As a value and not as
# `EXISTS`, which the planner may turn into a join with all assignments there are.
MINE = """
(
    SELECT mine.id FROM assignments mine
    WHERE mine.candidate_set_id = {set} AND mine.critic_id = :critic AND mine.purpose = '{purpose}'
      AND mine.state <> 'lapsed' AND NOT mine.repeat LIMIT 1
) IS NULL
"""
# Whether the prompt shows an image that the critic saw last.
LAST_SEEN = "x.sha256 = ANY (CAST((SELECT images FROM last) AS text[]))"
SEEN = f"EXISTS (SELECT FROM prompt_images x WHERE x.prompt_id = {{prompt}} AND {LAST_SEEN})"
SAME = SEEN.format(prompt="p.id")
# Whether a set `s` may be offered to the critic. Values again, so that rows are looked at one by one, in their order,
# and only as many as are asked for. Not for `deep`: the planner thinks such values rare, and would sort all there is.
NEW = f"""
(SELECT p.state FROM prompts p WHERE p.id = s.prompt_id) = 'ready'
AND {MINE.format(set="s.id", purpose="work")}
"""  # noqa: S608 - constants only
# The first set of `near` or `deep` that nobody else is about to take. Each is locked as it is looked at, and those
# behind the first one are not: `LIMIT` ends the search.
FIRST = """
SELECT free.id, free.slots
FROM {of} w CROSS JOIN LATERAL (
    SELECT s.id, s.slots FROM candidate_sets s
    WHERE s.id = w.id AND s.state = 'ready' AND s.taken = w.taken AND s.taken < s.slots
    FOR UPDATE SKIP LOCKED
) free
WHERE {condition} LIMIT 1
"""
UNSEEN = f"""
(SELECT x.prompt_id FROM prompt_images x WHERE x.prompt_id = w.prompt_id AND {LAST_SEEN} LIMIT 1) IS NULL
"""  # noqa: S608 - constants only

# One statement. `head` is where the order of sets on offer begins; `deep` is only looked at where the critic had all of
# those, and goes on from where it ended the last time. `chosen` locks a set that nobody else is about to take. What
# was taken since the snapshot is passed over, as its `taken` has changed; `claimed` may still meet somebody who was
# quicker: then it takes nothing and the statement is run again.
CLAIM = statement(f"""
WITH allowed AS (
    SELECT j.id AS project, coalesce(CAST(:max_open AS int), (r.settings ->> 'max_open')::int) AS max_open,
        make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision) AS lease,
        :gold_draw < coalesce((r.settings ->> 'gold_share')::double precision, 0) AS wants_gold,
        :repeat_draw < coalesce((r.settings ->> 'repeat_share')::double precision, 0) AS wants_repeat,
        coalesce((r.settings ->> 'repeat_after')::int, 0) AS repeat_after,
        d.paused_at IS NULL AND (
            d.practised_at IS NOT NULL OR coalesce((r.settings ->> 'practice_prompts')::int, 0) = 0
        ) AS stands
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
    LEFT JOIN critic_standings d ON d.project_id = j.id AND d.critic_id = :critic
    WHERE j.slug = :slug AND (:is_admin OR EXISTS (
        SELECT FROM memberships m WHERE m.project_id = j.id AND m.user_id = :critic AND m.role <> 'viewer'
    ))
), open AS (
    SELECT id FROM assignments
    WHERE (critic_id, project_id, id) BETWEEN (:critic, (SELECT project FROM allowed), 0)
        AND (:critic, (SELECT project FROM allowed), {LAST}) AND state = 'open'
    ORDER BY critic_id, project_id, id LIMIT (SELECT max_open FROM allowed)
), resumed AS (
    UPDATE assignments SET expires_at = now() + (SELECT lease FROM allowed)
    WHERE id = (SELECT min(id) FROM open HAVING count(*) >= (SELECT max_open FROM allowed)) AND state = 'open'
    RETURNING id, state, candidate_set_id, shown, expires_at, purpose
), room AS (
    SELECT (SELECT count(*) FROM open) < (SELECT max_open FROM allowed) AND (SELECT stands FROM allowed) AS is_there
), last AS MATERIALIZED (
    SELECT ARRAY(
        SELECT x.sha256 FROM prompt_images x WHERE x.prompt_id = (
            SELECT s.prompt_id FROM (
                SELECT candidate_set_id FROM assignments
                WHERE (critic_id, id) BETWEEN (:critic, 0) AND (:critic, {LAST})
                ORDER BY critic_id DESC, id DESC LIMIT 1
            ) newest JOIN candidate_sets s ON s.id = newest.candidate_set_id
        )
    ) AS images
), gold AS MATERIALIZED (
    SELECT g.candidate_set_id AS id
    FROM gold_prompts g
    WHERE (SELECT is_there FROM room) AND (SELECT wants_gold FROM allowed)
      AND g.project_id = (SELECT project FROM allowed) AND g.active AND NOT g.practice
      AND {MINE.format(set="g.candidate_set_id", purpose="gold")}
    ORDER BY {SEEN.format(prompt="g.prompt_id")}, md5(g.id::text || '-' || :critic) LIMIT 1
), again AS MATERIALIZED (
    SELECT o.id, o.shown
    FROM (
        SELECT v.candidate_set_id AS id, v.prompt_id, v.shown FROM verdicts v
        WHERE (v.critic_id, v.project_id, v.id) BETWEEN (:critic, (SELECT project FROM allowed), 0)
            AND (:critic, (SELECT project FROM allowed), {LAST})
          AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
        ORDER BY v.critic_id DESC, v.project_id DESC, v.id DESC OFFSET (SELECT repeat_after FROM allowed) LIMIT 100
    ) o JOIN prompts p ON p.id = o.prompt_id
    WHERE (SELECT is_there FROM room) AND (SELECT wants_repeat FROM allowed) AND NOT EXISTS (SELECT FROM gold)
      AND p.state NOT IN ('held', 'retired') AND {MINE.format(set="o.id", purpose="repeat")}
    ORDER BY {SAME}, md5(o.id::text || '-' || :critic) LIMIT 1
), wanted AS (
    SELECT (SELECT is_there FROM room) AND NOT EXISTS (SELECT FROM gold) AND NOT EXISTS (SELECT FROM again) AS work
), head AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id FROM candidate_sets s
    WHERE (SELECT work FROM wanted)
      AND s.project_id = (SELECT project FROM allowed) AND s.state = 'ready' AND s.taken < s.slots
    ORDER BY s.taken, s.rank, s.id LIMIT {HEAD}
), near AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id FROM head s WHERE {NEW}
), place AS MATERIALIZED (
    SELECT coalesce(max(taken), -1) AS taken, coalesce(max(rank), '-Infinity') AS rank,
        coalesce(max(set_id), 0) AS set_id, count(*) > 0 AS is_there
    FROM claim_places WHERE critic_id = :critic AND project_id = (SELECT project FROM allowed)
), further AS (
    SELECT NOT EXISTS (SELECT FROM near) AND (SELECT count(*) FROM head) = {HEAD} AS is_wanted
), deep AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
    WHERE (SELECT is_wanted FROM further)
      AND s.project_id = (SELECT project FROM allowed) AND s.state = 'ready' AND s.taken < s.slots
      AND (s.taken, s.rank, s.id) >= (
          (SELECT taken FROM place), (SELECT rank FROM place), (SELECT set_id FROM place)
      )
      AND p.state = 'ready' AND {MINE.format(set="s.id", purpose="work")}
    ORDER BY s.taken, s.rank, s.id LIMIT 8
), kept AS (
    INSERT INTO claim_places (critic_id, project_id, taken, rank, set_id)
    SELECT :critic, (SELECT project FROM allowed), taken, rank, id FROM deep ORDER BY taken, rank, id LIMIT 1
    ON CONFLICT (critic_id, project_id)
    DO UPDATE SET taken = excluded.taken, rank = excluded.rank, set_id = excluded.set_id
), begun_anew AS (
    DELETE FROM claim_places
    WHERE critic_id = :critic AND project_id = (SELECT project FROM allowed)
      AND (SELECT is_wanted FROM further) AND NOT EXISTS (SELECT FROM deep)
    RETURNING set_id
), offered AS MATERIALIZED (
    SELECT * FROM near UNION ALL SELECT * FROM deep
), other AS MATERIALIZED (
    {FIRST.format(of="offered", condition=UNSEEN)}
), chosen AS (
    SELECT * FROM other
    UNION ALL
    SELECT * FROM ({FIRST.format(of="offered", condition="NOT EXISTS (SELECT FROM other)")}) same
), next AS (
    SELECT c.id, free.slot, 'work' AS purpose, (
        SELECT array_agg(x.id ORDER BY random()) FROM candidates x WHERE x.candidate_set_id = c.id
    ) AS shown
    FROM chosen c CROSS JOIN LATERAL (
        SELECT min(n) AS slot FROM generate_series(1, c.slots) n
        WHERE NOT EXISTS (
            SELECT FROM assignments b
            WHERE b.candidate_set_id = c.id AND b.slot = n AND b.state IN ('open', 'judged') AND b.purpose = 'work'
        )
    ) free
    WHERE free.slot IS NOT NULL
    UNION ALL
    SELECT gold.id, 1, 'gold', (
        SELECT array_agg(x.id ORDER BY random()) FROM candidates x WHERE x.candidate_set_id = gold.id
    ) FROM gold
    UNION ALL
    -- Turned by a part of its length, so that no candidate stands where it stood.
    SELECT again.id, 1, 'repeat', again.shown[turn + 1 :] || again.shown[1 : turn]
    FROM again, LATERAL (SELECT 1 + floor(random() * (cardinality(again.shown) - 1))::int AS turn) t
), claimed AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, purpose, shown, expires_at)
    SELECT (SELECT project FROM allowed), next.id, :critic, next.slot, 'open', next.purpose, next.shown,
        now() + (SELECT lease FROM allowed)
    FROM next
    ON CONFLICT DO NOTHING
    RETURNING id, state, candidate_set_id, shown, expires_at, purpose
), counted AS (
    UPDATE candidate_sets s SET taken = s.taken + 1
    FROM claimed WHERE s.id = claimed.candidate_set_id AND claimed.purpose = 'work'
), a AS (
    SELECT *, true AS resumed FROM resumed UNION ALL SELECT *, false FROM claimed
)
SELECT a.id, a.expires_at, a.resumed, {CLAIM_JSON} AS body, true AS found, true AS allowed
FROM a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
UNION ALL
SELECT NULL, NULL, NULL, NULL,
    EXISTS (SELECT FROM near) OR EXISTS (SELECT FROM deep) OR EXISTS (SELECT FROM begun_anew)
        OR EXISTS (SELECT FROM next),
    coalesce((SELECT stands FROM allowed), false)
WHERE NOT EXISTS (SELECT FROM a)
""")  # noqa: S608 - constants only

# One critic claims one set after the other. A statement of its own, so that the next one sees what the same critic
# claimed a moment ago.
LOCK_CRITIC = statement("SELECT pg_advisory_xact_lock(12, CAST(CAST(:critic AS bigint) % 2147483648 AS int))")
# The open claims of a critic in a project, the oldest first.
HELD = statement("""
SELECT array_agg(id ORDER BY id) AS ids FROM assignments
WHERE critic_id = CAST(:critic AS bigint) AND project_id = CAST(:project AS bigint) AND state = 'open'
""")
LOOK = statement(f"""
SELECT a.id, a.expires_at, {CLAIM_JSON} AS body, a.critic_id, a.project_id
FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
WHERE a.id = CAST(:assignment AS bigint)
""")  # noqa: S608 - constants only
MAX_EXTENSIONS = 4
# Where less than half of a lease is left, another one begins.
EXTEND = statement(f"""
UPDATE assignments a
SET extensions = a.extensions + 1, expires_at = now() + lease.span
FROM projects p JOIN setting_revisions r ON r.id = p.revision_id
CROSS JOIN LATERAL (
    SELECT make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision) AS span
) lease
WHERE a.id = CAST(:assignment AS bigint) AND p.id = a.project_id AND a.state = 'open'
  AND a.extensions < {MAX_EXTENSIONS} AND a.expires_at < now() + lease.span / 2
RETURNING a.id
""")  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as its critic sees it. `content` is JSON, as REST answers it; `resumed`: it was held before."""

    assignment_id: int
    expires_at: datetime
    resumed: bool
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The claim as plain data."""
        body: dict[str, Any] = orjson.loads(self.content)
        return body

    @property
    def prompt(self) -> dict[str, Any]:
        """The prompt, without references and metadata."""
        prompt: dict[str, Any] = self.body["prompt"]
        return prompt

    @property
    def candidates(self) -> list[dict[str, str]]:
        """`id` and `text` of each candidate, in the order they are shown."""
        candidates: list[dict[str, str]] = self.body["candidates"]
        return candidates


async def claim(
    transaction: Transaction, actor: Actor, slug: str, *, max_open: int | None = None, is_locked: bool = False
) -> Claim | None:
    """Claim the next candidate set of a project, or None when none is ready for the actor.

    One who holds `max_open` claims already (a token's own number, else the project's) gets the oldest of those again,
    its lease renewed. `is_locked` says that the transaction holds the critic's lock already. Needs the role critic.
    Raises `NotFound`, and `Forbidden` for one who is paused or has yet to practise.
    """
    values = claim_values(actor, slug, max_open=max_open)
    calls: list[Call] = [(CLAIM, values)] if is_locked else [(LOCK_CRITIC, values), (CLAIM, values)]
    for _ in range(RETRIES):
        row = (await transaction.run(*calls))[-1]
        calls = [(CLAIM, values)]
        if row is None:
            return None
        if row["id"] is not None:
            return Claim(row["id"], row["expires_at"], row["resumed"], row["body"])
        if not row["allowed"]:
            project = await project_for(transaction, actor, slug, Role.critic)
            await standings.admit(transaction, actor, project.id, slug)
            continue
        if not row["found"]:
            return None
        await asyncio.sleep(random.uniform(0, PAUSE))  # other critics are taking the last sets at this moment
    return None


async def held_by(transaction: Transaction, actor: Actor, project_id: int) -> tuple[int, ...]:
    """The ids of the actor's open claims in a project, the oldest first."""
    [row] = await transaction.run((HELD, {"critic": actor.user_id, "project": project_id}))
    return () if row is None else tuple(row["ids"] or ())


async def next_claim(
    transaction: Transaction,
    actor: Actor,
    slug: str,
    *,
    known: frozenset[int],
    held: tuple[int, ...] = (),
    is_locked: bool = False,
) -> Claim | None:
    """A claim that a page does not know: one of those that are `held`, else a new one; None when there is none."""
    for assignment_id in held:
        if assignment_id not in known:
            one = {"assignment": assignment_id}
            row = (await transaction.run((EXTEND, one), (LOOK, one)))[-1]
            if row is not None:
                return Claim(row["id"], row["expires_at"], True, row["body"])
    found = await claim(transaction, actor, slug, is_locked=is_locked)
    return None if found is None or found.assignment_id in known else found


def claim_values(actor: Actor, slug: str, *, max_open: int | None = None) -> Values:
    """What `CLAIM` is run with; without `max_open` the token's number counts, if it has one.

    Two draws decide whether it is the turn of a gold prompt, or of a repeat.
    """
    return {
        "slug": slug,
        "critic": actor.user_id,
        "is_admin": actor.is_admin,
        "max_open": max_open or actor.max_open,
        "gold_draw": random.random(),
        "repeat_draw": random.random(),
    }
