"""A large project after years of judging, for `bench/pages.py`: filled by SQL, with matches for every filter.

Each set has two critics, who disagree on some; the first critic judged every set. Some prompts are flagged and held,
some sets are by tuned versions, and some prompts are gold. Rare rows are at the end, where a sequential scan finds
them last.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import ModelVersion, Scope, User, Webhook
from app.services import sweep
from app.services.accounts import sessions, users
from app.services.kernel.actors import SYSTEM
from app.services.quality import set_agreements
from bench import filling
from tests.e2e import world

SLUG = "bench"
OVERLAP = 2
JUDGED = """
CREATE TABLE bench_judged AS
SELECT s.id AS set_id, s.prompt_id, s.number,
    ARRAY(SELECT c.id FROM candidates c WHERE c.candidate_set_id = s.id ORDER BY c.position) AS shown,
    now() - make_interval(secs => (:sets - s.number) * 4.0) AS at,
    s.number % 7 = 3 AND s.number % 5 > 0 AND s.number > :sets / 2 AS apart
FROM (
    SELECT id, prompt_id, row_number() OVER (ORDER BY id) AS number FROM candidate_sets
    WHERE project_id = :project AND id % :every = 0 ORDER BY id LIMIT :sets
) s
"""
# The first critic judges all of them, the others take turns at the second slot.
ASSIGNED = """
INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, claimed_at, expires_at)
SELECT :project, j.set_id, CASE slot WHEN 1 THEN of_all[1]
        ELSE of_all[2 + CAST(j.number % (cardinality(of_all) - 1) AS int)] END, slot, 'judged', j.shown, j.at, j.at
FROM bench_judged j CROSS JOIN generate_series(1, 2) slot
CROSS JOIN (SELECT CAST(:critics AS bigint[]) AS of_all) critics ORDER BY j.number, slot
"""
SAID = """
WITH said AS (
    INSERT INTO verdicts (
        project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, seconds, created_at
    )
    SELECT :project, a.id, j.set_id, j.prompt_id, a.critic_id,
        CASE WHEN j.number % 5 = 0 THEN 'none_fit' ELSE 'picked' END, j.shown, 3 + j.number % 20, j.at
    FROM assignments a JOIN bench_judged j ON j.set_id = a.candidate_set_id ORDER BY j.number, a.slot
    RETURNING id, candidate_set_id, assignment_id, kind
)
INSERT INTO picks (verdict_id, candidate_id)
SELECT said.id, j.shown[1 + CAST((j.number + CASE WHEN j.apart THEN a.slot ELSE 0 END) % cardinality(j.shown) AS int)]
FROM said JOIN bench_judged j ON j.set_id = said.candidate_set_id JOIN assignments a ON a.id = said.assignment_id
WHERE said.kind = 'picked'
"""
TOLD = (
    "UPDATE candidate_sets s SET taken = 2, state = 'judged' FROM bench_judged j WHERE j.set_id = s.id",
    """
    UPDATE prompts p SET state = 'judged', has_accepted = j.number % 5 > 0,
        fresh = j.number % 5 > 0 AND p.split = 'train' AND j.number > :sets - 1000
    FROM bench_judged j WHERE j.prompt_id = p.id
    """,
)
# A slot of each of the last sets was taken and given back with a flag; half of their prompts are held until a reviewer
# decides. The last of all wait, and some are out of use.
FLAGGED = """
WITH last AS (
    SELECT s.id, s.prompt_id, row_number() OVER (ORDER BY s.id) AS number,
        ARRAY(SELECT c.id FROM candidates c WHERE c.candidate_set_id = s.id ORDER BY c.position) AS shown
    FROM candidate_sets s WHERE s.project_id = :project AND s.taken = 0 ORDER BY s.id DESC LIMIT 2000
), taken AS (
    INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, claimed_at, expires_at)
    SELECT :project, id, :critic, 1, 'released', shown, now(), now() FROM last RETURNING id, candidate_set_id, shown
), held AS (
    UPDATE prompts p SET state = 'held' FROM last WHERE p.id = last.prompt_id AND last.number % 2 = 0
), said AS (
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, reason)
    SELECT :project, taken.id, last.id, last.prompt_id, :critic, 'flagged', taken.shown, 'the image is too dark'
    FROM taken JOIN last ON last.id = taken.candidate_set_id RETURNING id, candidate_set_id
)
INSERT INTO reviews (project_id, candidate_set_id, verdict_id, kind)
SELECT :project, candidate_set_id, id, 'flag' FROM said
"""
DIFFERING = """
INSERT INTO reviews (project_id, candidate_set_id, kind)
SELECT :project, set_id, 'disagreement' FROM bench_judged WHERE apart
"""
WRITTEN = """
UPDATE candidate_sets SET version_id = CASE WHEN id % 3 = 0 THEN :first ELSE :second END, source = 'model'
WHERE project_id = :project AND (id % 3 = 0 OR id IN (
    SELECT id FROM candidate_sets WHERE project_id = :project ORDER BY id DESC LIMIT 500
))
"""
GOLD = """
INSERT INTO gold_prompts (project_id, prompt_id, candidate_set_id, fits, unfit, practice)
SELECT :project, s.prompt_id, s.id, ARRAY[c.id], '{}', s.id % 20 = 0
FROM candidate_sets s JOIN candidates c ON c.candidate_set_id = s.id AND c.position = 0
WHERE s.project_id = :project AND s.taken = 0 ORDER BY s.id LIMIT 400
"""
AUDIT = """
INSERT INTO audit_events (project_id, user_id, action, subject, at)
SELECT CASE WHEN n % 3 > 0 THEN :project END, CASE WHEN n % 50 = 0 THEN :admin END,
    CASE WHEN n % 100 = 0 THEN 'user.add' ELSE 'prompt.change' END, 'prompt:' || n,
    now() - make_interval(mins => :events - n)
FROM generate_series(1, :events) n
"""
DELIVERIES = """
INSERT INTO webhook_deliveries (webhook_id, event, payload, state, finished_at)
SELECT :webhook, 'verdict', '{"event": "verdict"}', 'delivered', now() FROM generate_series(1, 50000)
"""
IMPORTS = """
INSERT INTO imports (project_id, state, filename, file_key, total, done, added, rejected, finished_at)
SELECT :project, 'succeeded', 'file-' || n || '.jsonl', 'none', 1000, 1000, 990, 10, now()
FROM generate_series(1, 300) n
"""
# What triggers would have kept, which do not run while so much is filled.
WORDS = """
INSERT INTO prompt_words (prompt_id, project_id, words)
SELECT id, project_id, lower(concat_ws(E'\\n', question, answer, external_id)) FROM prompts
WHERE project_id = :project ORDER BY id
"""
FIND = """
SELECT (SELECT min(id) FROM prompts WHERE project_id = :project AND state = 'judged') AS p,
    (SELECT max(id) FROM prompts WHERE project_id = :project) AS q,
    (SELECT min(id) FROM verdicts WHERE project_id = :project) AS v,
    (SELECT min(id) FROM assignments WHERE project_id = :project) AS a,
    (SELECT min(id) FROM users WHERE email = 'critic0@example.org') AS c,
    (SELECT min(id) FROM users WHERE email = 'critic1@example.org') AS d,
    (SELECT min(id) FROM users WHERE email = 'admin@example.org') AS nobody,
    (SELECT min(id) FROM reviews WHERE project_id = :project) AS review,
    (SELECT max(id) FROM imports WHERE project_id = :project) AS import,
    (SELECT max(id) FROM webhooks WHERE project_id = :project) AS webhook,
    (SELECT max(id) FROM model_versions WHERE project_id = :project) AS version,
    (SELECT max(r.id) FROM rounds r JOIN projects p ON p.id = r.project_id WHERE p.slug = 'scenes') AS round,
    (SELECT max(s.id) FROM snapshots s JOIN projects p ON p.id = s.project_id WHERE p.slug = 'scenes') AS snapshot,
    (SELECT max(id) FROM comparisons) AS comparison
"""


@dataclass(frozen=True, slots=True)
class Large:
    """What was filled: what addresses name, by the letter they use; who asks, by cookie or token."""

    names: dict[str, str]
    admin: str
    critic: str
    token: str


def fill(*, prompts: int, candidates: int, verdicts: int, critics: int) -> None:
    """Fill the project, and a small one beside it with rounds."""
    filling.add_images()
    people, _ = filling.add_critics(critics)
    project = filling.add_project(SLUG, prompts=prompts, candidates=candidates, overlap=OVERLAP, say=True)
    filling.let_in(project, people)
    sets = verdicts // OVERLAP
    judge(project, people, sets=sets, every=max(1, prompts // sets))
    with session_scope() as session:
        world.build(session, prompts=24, rich=True)
        versions = []
        base = session.scalars(select(ModelVersion).where(ModelVersion.project_id == project)).one()
        for number in (1, 2):
            made = ModelVersion(
                project_id=project, number=number, parent_id=base.id, base_model=base.base_model, adapter="none"
            )
            session.add(made)
            session.flush()
            versions.append(made.id)
        hook = Webhook(
            project_id=project, url="https://example.org/", events=["round.finished"], salt="salt", active=False
        )
        session.add(hook)
        session.flush()
        admin, hook_id = who(session, "admin@example.org").id, hook.id
    for statement, values in (
        (WRITTEN, {"project": project, "first": versions[0], "second": versions[1]}),
        (WORDS, {"project": project}),
        (GOLD, {"project": project}),
        (AUDIT, {"project": project, "admin": admin, "events": 200_000}),
        (DELIVERIES, {"webhook": hook_id}),
        (IMPORTS, {"project": project}),
    ):
        filling.patiently(statement, values, trusting=True)
    catch_up()


def catch_up() -> None:
    """Let the sweep have followed all that was said, and bring the tables to the state that time brings them to."""
    found = 1
    while found:
        with session_scope() as session:
            found = set_agreements.follow_feed(session)
    filling.settle()
    sweep.run()


def judge(project: int, critics: list[int], *, sets: int, every: int) -> None:
    """Let two critics have judged each of so many sets, and one have flagged some others."""
    values = {"project": project, "critics": critics, "critic": critics[1], "sets": sets, "every": every}
    for statement in (
        JUDGED,
        "ANALYZE bench_judged",
        ASSIGNED,
        SAID,
        *TOLD,
        FLAGGED,
        DIFFERING,
        "DROP TABLE bench_judged",
    ):
        filling.patiently(statement, values, trusting=True)


def who(session: Session, email: str) -> User:
    """Whose address it is."""
    return session.scalars(select(User).where(User.email == email)).one()


def sign_in() -> Large:
    """Who asks, and what for, in the database as it was filled."""
    with session_scope() as session:
        admin, critic = who(session, "admin@example.org"), who(session, "critic0@example.org")
        project = session.execute(text("SELECT id FROM projects WHERE slug = :slug"), {"slug": SLUG}).scalar_one()
        found = session.execute(text(FIND), {"project": project}).one()._asdict()
        image = session.execute(text("SELECT min(sha256) FROM images")).scalar_one()
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
        cookies = [sessions.open_web_session(session, one)[0] for one in (admin, critic)]
    return Large({key: str(value) for key, value in found.items()} | {"image": image}, cookies[0], cookies[1], token)
