"""Claims: the statement by which a critic claims a candidate set. `docs/claim.md` explains it and shows its plan."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from app.db.judging_pool import Call, Transaction, Values, statement
from app.services.kernel.actors import CRITIC_LOCK, Actor
from app.services.kernel.rights import JUDGING_ROLES, Right
from app.services.projects.access import project_for
from app.services.projects.choice import LOCAL
from app.services.prompts.prompts import HAS_RATING, IMAGE_JSON, PARTS_JSON, POLICY_JSON, images_path
from app.services.quality import standings
from app.settings import get_settings

RETRIES = 20
PAUSE = 0.02
"""The longest wait, in seconds, before a claim that lost its set to another critic is retried."""
HEAD_SIZE = 24
"""How many sets at the head of the order are checked before the search continues at the critic's saved place."""

# A critic's rows are read as a range of the index that starts with the critic. With `critic_id = ...` and an order by
# id, the planner may scan the primary key backwards, past everything that other critics did meanwhile.
MAX_ID = 2**63 - 1

# A claim as JSON: the prompt without references and metadata, the candidates in the order they are shown. `a` is the
# assignment, `s` its candidate set, `p` its prompt. The true state of a prompt would give gold prompts away, and what
# others said. Where answers have fields, no candidate comes with it before the critic's blind values are stored, and
# where one is a rating, the prompt's answer never: it may be the right rating.
CLAIM_JSON = f"""
jsonb_build_object(
    'id', a.id::text,
    'state', a.state,
    'expires_at', to_char(a.expires_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'prompt', jsonb_build_object(
        'id', p.id::text,
        'external_id', p.external_id,
        'split', p.split,
        'state', CASE WHEN a.state = 'open' THEN 'ready' ELSE 'judged' END,
        'question', p.question,
        'answer', CASE WHEN NOT (a.is_blind AND {HAS_RATING.format(project="s.project_id")}) THEN
            coalesce(p.answer, s.answer)
        END,
        'images', (
            SELECT jsonb_agg({IMAGE_JSON} ORDER BY pi.position)
            FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
        ),
        'parts', {PARTS_JSON}
    ),
    'candidates', CASE WHEN NOT a.is_blind THEN (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text) ORDER BY array_position(a.shown, c.id))
        FROM candidates c WHERE c.candidate_set_id = s.id AND c.id = ANY (a.shown)
    ) WHEN a.blind IS NOT NULL THEN (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text, 'fields', c.fields)
            ORDER BY array_position(a.shown, c.id)), '[]')
        FROM candidates c WHERE c.id = ANY (a.shown)
    ) END
) || CASE WHEN a.is_blind OR p.policy_version_id IS NOT NULL THEN
    jsonb_build_object('fields', a.blind, 'policy', {POLICY_JSON})
ELSE '{{}}' END
"""  # noqa: S608 - constants only

# Whether the prompt's metadata ask that its images are blurred at first.
IS_BLURRED = "coalesce(p.metadata ->> 'blur' IN ('true', 'yes'), false) AS is_blurred"
LANGUAGE = "p.metadata ->> 'language' AS language"

# Whether the critic has not had the set for this purpose yet. The condition matches its unique index. A scalar subquery
# instead of `NOT EXISTS`, which the planner may turn into a join with all assignments.
NOT_HAD = """
(
    SELECT mine.id FROM assignments mine
    WHERE mine.candidate_set_id = {set} AND mine.critic_id = :critic AND mine.purpose = '{purpose}'
      AND mine.state <> 'lapsed' AND NOT mine.repeat LIMIT 1
) IS NULL
"""
# Whether the prompt has an image in common with the critic's newest assignment.
IS_LAST_IMAGE = "x.sha256 = ANY (CAST((SELECT images FROM last_images) AS text[]))"
SHOWS_LAST_IMAGE = f"EXISTS (SELECT FROM prompt_images x WHERE x.prompt_id = {{prompt}} AND {IS_LAST_IMAGE})"
PROMPT_SHOWS_LAST_IMAGE = SHOWS_LAST_IMAGE.format(prompt="p.id")
# Whether a set `s` may be given to the critic. Scalar subqueries again, so that rows are checked one by one, in index
# order, and only as many as needed. Not used in `beyond_head`, where the planner expects few matches and would sort all
# sets.
IS_ELIGIBLE = f"""
(SELECT p.state FROM prompts p WHERE p.id = s.prompt_id) = 'ready'
AND {NOT_HAD.format(set="s.id", purpose="work")}
"""  # noqa: S608 - constants only
# The first eligible set that no other transaction is claiming. Each set is locked when it is checked; `LIMIT` ends the
# search at the first one, so that later sets are not locked. One whose candidates a machine critic has chosen since the
# statement's snapshot is passed over: the snapshot shows those from before.
FIRST_UNLOCKED = """
SELECT free.id, free.slots
FROM {of} w CROSS JOIN LATERAL (
    SELECT s.id, s.slots FROM candidate_sets s
    WHERE s.id = w.id AND s.state = 'ready' AND s.taken = w.taken AND s.taken < s.slots
      AND s.selected_by IS NOT DISTINCT FROM w.selected_by
    FOR UPDATE SKIP LOCKED
) free
WHERE {condition} LIMIT 1
"""
SHOWS_OTHER_IMAGES = f"""
(SELECT x.prompt_id FROM prompt_images x WHERE x.prompt_id = w.prompt_id AND {IS_LAST_IMAGE} LIMIT 1) IS NULL
"""  # noqa: S608 - constants only

# `CASE` so that `patience` is read only where nothing else is left.
MAY_BE_LAST_IMAGE = """
CASE WHEN EXISTS (SELECT FROM other_image) THEN false ELSE NOT (SELECT is_withheld FROM patience) END
"""
# Whether other sets of the project are written now, or will be by a worker that is alive. `j` is the project, `r` its
# settings; both read a partial index.
IS_BEING_FILLED = f"""
EXISTS (SELECT FROM candidate_sets c WHERE c.project_id = j.id AND c.state = 'sampling')
OR coalesce((r.settings ->> 'pool_target')::int, 1) > 0 AND EXISTS (
    SELECT FROM prompts w WHERE w.project_id = j.id AND w.state = 'waiting' AND w.split = 'train' AND NOT EXISTS (
        SELECT FROM candidate_sets c
        WHERE c.prompt_id = w.id AND c.state = 'failed' AND c.version_id = j.active_version_id
    )
) AND EXISTS (
    SELECT FROM workers w WHERE w.beats_at > now() - make_interval(secs => CAST(:lease_seconds AS double precision))
      AND CASE WHEN coalesce(r.settings ->> 'engine', '{LOCAL}') = '{LOCAL}' THEN 'model' ELSE 'default' END
          = ANY (string_to_array(w.queues, ','))
) AND NOT EXISTS (
    SELECT FROM sampling_pauses u WHERE u.project_id = j.id AND u.version_id = j.active_version_id
)
"""  # noqa: S608 - constants only

# One statement. `head` is the start of the order of claimable sets. `beyond_head` is read only if the critic has had
# all of them, and starts at the critic's saved place. `chosen` locks a set that no other transaction is claiming. Sets
# that were claimed since the statement's snapshot are skipped, because their `taken` has changed. `claimed` can still
# conflict with a faster critic: then it inserts nothing and the statement is run again. Where critics rate pictures, an
# image never follows itself under another policy while sets about others are to come (`is_withheld`).
CLAIM = statement(f"""
WITH rules AS (
    SELECT j.id AS project, coalesce(CAST(:max_open AS int), (r.settings ->> 'max_open')::int) AS max_open,
        make_interval(secs => 60 * (r.settings ->> 'lease_minutes')::double precision) AS lease,
        :gold_draw < coalesce((r.settings ->> 'gold_share')::double precision, 0) AS wants_gold,
        coalesce(jsonb_array_length(r.settings -> 'answer_fields'), 0) > 0 AS is_blind,
        :repeat_draw < coalesce((r.settings ->> 'repeat_share')::double precision, 0) AS wants_repeat,
        coalesce((r.settings ->> 'repeat_after')::int, 0) AS repeat_after,
        d.paused_at IS NULL AND (
            d.practised_at IS NOT NULL OR coalesce((r.settings ->> 'practice_prompts')::int, 0) = 0
        ) AS may_claim
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
    LEFT JOIN critic_standings d ON d.project_id = j.id AND d.critic_id = :critic
    WHERE j.slug = :slug AND (:is_admin OR EXISTS (
        SELECT FROM memberships m WHERE m.project_id = j.id AND m.user_id = :critic AND m.role IN ({JUDGING_ROLES})
    ))
), open_claims AS (
    SELECT id FROM assignments
    WHERE (critic_id, project_id, id) BETWEEN (:critic, (SELECT project FROM rules), 0)
        AND (:critic, (SELECT project FROM rules), {MAX_ID}) AND state = 'open'
    ORDER BY critic_id, project_id, id LIMIT (SELECT max_open FROM rules)
), resumed AS (
    UPDATE assignments SET expires_at = now() + (SELECT lease FROM rules)
    WHERE id = (SELECT min(id) FROM open_claims HAVING count(*) >= (SELECT max_open FROM rules)) AND state = 'open'
    RETURNING id, state, candidate_set_id, shown, expires_at, purpose, is_blind, blind
), capacity AS (
    SELECT (SELECT count(*) FROM open_claims) < (SELECT max_open FROM rules)
        AND (SELECT may_claim FROM rules) AS is_free
), last_images AS MATERIALIZED (
    SELECT ARRAY(
        SELECT x.sha256 FROM prompt_images x WHERE x.prompt_id = (
            SELECT s.prompt_id FROM (
                SELECT candidate_set_id FROM assignments
                WHERE (critic_id, id) BETWEEN (:critic, 0) AND (:critic, {MAX_ID})
                ORDER BY critic_id DESC, id DESC LIMIT 1
            ) newest JOIN candidate_sets s ON s.id = newest.candidate_set_id
        )
    ) AS images
), patience AS (
    SELECT rules.is_blind AND ({IS_BEING_FILLED}) AS is_withheld
    FROM rules CROSS JOIN projects j JOIN setting_revisions r ON r.id = j.revision_id WHERE j.id = rules.project
), gold AS MATERIALIZED (
    SELECT g.candidate_set_id AS id
    FROM gold_prompts g
    WHERE (SELECT is_free FROM capacity) AND (SELECT wants_gold FROM rules)
      AND g.project_id = (SELECT project FROM rules) AND g.active AND NOT g.practice
      AND {NOT_HAD.format(set="g.candidate_set_id", purpose="gold")}
      AND NOT ((SELECT is_blind FROM rules) AND {SHOWS_LAST_IMAGE.format(prompt="g.prompt_id")})
    ORDER BY {SHOWS_LAST_IMAGE.format(prompt="g.prompt_id")}, md5(g.id::text || '-' || :critic) LIMIT 1
), repeated AS MATERIALIZED (
    SELECT o.id, o.shown
    FROM (
        SELECT v.candidate_set_id AS id, v.prompt_id, v.shown FROM verdicts v
        WHERE (v.critic_id, v.project_id, v.id) BETWEEN (:critic, (SELECT project FROM rules), 0)
            AND (:critic, (SELECT project FROM rules), {MAX_ID})
          AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
        ORDER BY v.critic_id DESC, v.project_id DESC, v.id DESC OFFSET (SELECT repeat_after FROM rules) LIMIT 100
    ) o JOIN prompts p ON p.id = o.prompt_id
    WHERE (SELECT is_free FROM capacity) AND (SELECT wants_repeat FROM rules) AND NOT EXISTS (SELECT FROM gold)
      AND p.state NOT IN ('held', 'retired') AND {NOT_HAD.format(set="o.id", purpose="repeat")}
      AND NOT ((SELECT is_blind FROM rules) AND {PROMPT_SHOWS_LAST_IMAGE})
    ORDER BY {PROMPT_SHOWS_LAST_IMAGE}, md5(o.id::text || '-' || :critic) LIMIT 1
), purpose_drawn AS (
    SELECT (SELECT is_free FROM capacity) AND NOT EXISTS (SELECT FROM gold)
        AND NOT EXISTS (SELECT FROM repeated) AS is_work
), head AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id, s.selected_by FROM candidate_sets s
    WHERE (SELECT is_work FROM purpose_drawn)
      AND s.project_id = (SELECT project FROM rules) AND s.state = 'ready' AND s.taken < s.slots
    ORDER BY s.taken, s.rank, s.id LIMIT {HEAD_SIZE}
), in_head AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id, s.selected_by FROM head s WHERE {IS_ELIGIBLE}
), saved_place AS MATERIALIZED (
    SELECT coalesce(max(taken), -1) AS taken, coalesce(max(rank), '-Infinity') AS rank,
        coalesce(max(set_id), 0) AS set_id
    FROM claim_places WHERE critic_id = :critic AND project_id = (SELECT project FROM rules)
), search_on AS (
    SELECT NOT EXISTS (SELECT FROM in_head) AND (SELECT count(*) FROM head) = {HEAD_SIZE} AS is_needed
), beyond_head AS MATERIALIZED (
    SELECT s.id, s.taken, s.rank, s.prompt_id, s.selected_by
    FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
    WHERE (SELECT is_needed FROM search_on)
      AND s.project_id = (SELECT project FROM rules) AND s.state = 'ready' AND s.taken < s.slots
      AND (s.taken, s.rank, s.id) >= (
          (SELECT taken FROM saved_place), (SELECT rank FROM saved_place), (SELECT set_id FROM saved_place)
      )
      AND p.state = 'ready' AND {NOT_HAD.format(set="s.id", purpose="work")}
    ORDER BY s.taken, s.rank, s.id LIMIT 8
), place_saved AS (
    INSERT INTO claim_places (critic_id, project_id, taken, rank, set_id)
    SELECT :critic, (SELECT project FROM rules), taken, rank, id FROM beyond_head ORDER BY taken, rank, id LIMIT 1
    ON CONFLICT (critic_id, project_id)
    DO UPDATE SET taken = excluded.taken, rank = excluded.rank, set_id = excluded.set_id
), place_reset AS (
    DELETE FROM claim_places
    WHERE critic_id = :critic AND project_id = (SELECT project FROM rules)
      AND (SELECT is_needed FROM search_on) AND NOT EXISTS (SELECT FROM beyond_head)
    RETURNING set_id
), eligible AS MATERIALIZED (
    SELECT * FROM in_head UNION ALL SELECT * FROM beyond_head
), other_image AS MATERIALIZED (
    {FIRST_UNLOCKED.format(of="eligible", condition=SHOWS_OTHER_IMAGES)}
), chosen AS (
    SELECT * FROM other_image
    UNION ALL
    SELECT * FROM ({FIRST_UNLOCKED.format(of="eligible", condition=MAY_BE_LAST_IMAGE)}) same_image
), new_claim AS (
    SELECT c.id, free.slot, 'work' AS purpose, (
        SELECT array_agg(x.id ORDER BY random()) FROM candidates x
        WHERE x.candidate_set_id = c.id AND x.invalid IS NULL AND NOT x.spare
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
    -- The order is rotated by a random part of its length, so that no candidate keeps its position.
    SELECT repeated.id, 1, 'repeat', repeated.shown[turn + 1 :] || repeated.shown[1 : turn]
    FROM repeated, LATERAL (SELECT 1 + floor(random() * (cardinality(repeated.shown) - 1))::int AS turn) t
), claimed AS (
    INSERT INTO assignments (
        project_id, candidate_set_id, critic_id, slot, state, purpose, shown, expires_at, is_blind, blind, blind_at
    )
    SELECT (SELECT project FROM rules), n.id, :critic, n.slot, 'open', n.purpose, n.shown,
        now() + (SELECT lease FROM rules), (SELECT is_blind FROM rules), rated.blind, rated.blind_at
    FROM new_claim n LEFT JOIN LATERAL (
        -- A critic who has seen the candidates rates no more: what they said blind before their claim lapsed stands.
        SELECT o.blind, o.blind_at FROM assignments o
        WHERE (SELECT is_blind FROM rules) AND o.critic_id = :critic AND o.candidate_set_id = n.id
          AND o.purpose = n.purpose AND o.state = 'lapsed' AND o.blind IS NOT NULL
        ORDER BY o.id DESC LIMIT 1
    ) rated ON true
    ON CONFLICT DO NOTHING
    RETURNING id, state, candidate_set_id, shown, expires_at, purpose, is_blind, blind
), counted AS (
    UPDATE candidate_sets s SET taken = s.taken + 1
    FROM claimed WHERE s.id = claimed.candidate_set_id AND claimed.purpose = 'work'
), a AS (
    SELECT *, true AS resumed FROM resumed UNION ALL SELECT *, false FROM claimed
)
SELECT a.id, a.expires_at, a.resumed, {CLAIM_JSON} AS body, {IS_BLURRED}, {LANGUAGE}, true AS found, true AS may_claim
FROM a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL,
    EXISTS (SELECT FROM eligible w WHERE NOT (SELECT is_withheld FROM patience) OR {SHOWS_OTHER_IMAGES})
        OR EXISTS (SELECT FROM place_reset) OR EXISTS (SELECT FROM new_claim),
    coalesce((SELECT may_claim FROM rules), false)
WHERE NOT EXISTS (SELECT FROM a)
""")  # noqa: S608 - constants only

# Serialises the claims of one critic. A separate statement, so that the snapshot of the next one includes the critic's
# previous claim.
LOCK_CRITIC = statement(f"SELECT {CRITIC_LOCK.format(critic=':critic')}")
# The open claims of a critic in a project, oldest first.
OPEN_CLAIM_IDS = statement("""
SELECT array_agg(id ORDER BY id) AS ids FROM assignments
WHERE critic_id = CAST(:critic AS bigint) AND project_id = CAST(:project AS bigint) AND state = 'open'
""")
GET_CLAIM = statement(f"""
SELECT a.id, a.expires_at, {CLAIM_JSON} AS body, {IS_BLURRED}, {LANGUAGE}, a.critic_id, a.project_id
FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id
WHERE a.id = CAST(:assignment AS bigint)
""")  # noqa: S608 - constants only
MAX_EXTENSIONS = 4
# Renews a lease once less than half of it is left.
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
    """A claim as its critic sees it. `content` is the JSON that REST returns; `resumed`: the claim was open before.

    `is_blurred`: the page blurs the prompt's images until the critic asks to see them. `language` is what the prompt's
    metadata say of its texts.
    """

    assignment_id: int
    expires_at: datetime
    resumed: bool
    content: bytes
    is_blurred: bool
    language: str | None = None

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
        """`id` and `text` of each candidate, in the order they are shown; none before blind values are given."""
        candidates: list[dict[str, str]] | None = self.body["candidates"]
        return candidates or []


async def claim(
    transaction: Transaction, actor: Actor, slug: str, *, max_open: int | None = None, is_locked: bool = False
) -> Claim | None:
    """Claim the next candidate set of a project. Returns None if no set is ready for the actor.

    An actor with `max_open` open claims (the token's limit, else the project's) gets the oldest of them again, with a
    renewed lease. `is_locked`: the transaction holds the critic's lock already. Needs the role critic. Raises
    `NotFound`, and `Forbidden` for a critic who is paused or has not finished practice.
    """
    values = claim_values(actor, slug, max_open=max_open)
    calls: list[Call] = [(CLAIM, values)] if is_locked else [(LOCK_CRITIC, values), (CLAIM, values)]
    for _ in range(RETRIES):
        row = (await transaction.run(*calls))[-1]
        calls = [(CLAIM, values)]
        if row is None:
            return None
        if row["id"] is not None:
            return Claim(row["id"], row["expires_at"], row["resumed"], row["body"], row["is_blurred"], row["language"])
        if not row["may_claim"]:
            project = await project_for(transaction, actor, slug, Right.judges)
            await standings.admit(transaction, actor, project.id, slug)
            continue
        if not row["found"]:
            return None
        await asyncio.sleep(random.uniform(0, PAUSE))  # other critics are claiming the last sets right now
    return None


async def list_open_claims(transaction: Transaction, actor: Actor, project_id: int) -> tuple[int, ...]:
    """The ids of the actor's open claims in a project, oldest first."""
    [row] = await transaction.run((OPEN_CLAIM_IDS, {"critic": actor.user_id, "project": project_id}))
    return () if row is None else tuple(row["ids"] or ())


async def next_claim(
    transaction: Transaction,
    actor: Actor,
    slug: str,
    *,
    known: frozenset[int],
    open_claims: tuple[int, ...] = (),
    is_locked: bool = False,
) -> Claim | None:
    """A claim that a page does not show yet: one of the open claims, else a new one; None if there is none.

    `known` are the ids of the assignments that the page shows, `open_claims` those of the critic's open claims.
    """
    for assignment_id in open_claims:
        if assignment_id not in known:
            values: Values = {"assignment": assignment_id, "images": images_path()}
            row = (await transaction.run((EXTEND, values), (GET_CLAIM, values)))[-1]
            if row is not None:
                return Claim(row["id"], row["expires_at"], True, row["body"], row["is_blurred"], row["language"])
    claimed = await claim(transaction, actor, slug, is_locked=is_locked)
    return None if claimed is None or claimed.assignment_id in known else claimed


def claim_values(actor: Actor, slug: str, *, max_open: int | None = None) -> Values:
    """The parameters of `CLAIM`. `max_open` defaults to the token's limit, if it has one.

    Two random draws decide whether the claim is a gold prompt or a repeat. A worker is alive that was heard of within
    `lease_seconds`.
    """
    return {
        "slug": slug,
        "critic": actor.user_id,
        "is_admin": actor.is_admin,
        "max_open": max_open or actor.max_open,
        "gold_draw": random.random(),
        "repeat_draw": random.random(),
        "images": images_path(),
        "lease_seconds": get_settings().lease_seconds,
    }
