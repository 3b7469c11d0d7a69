"""What an installation holds before critics come: people, images, projects. By SQL and REST that fit old commits too.

Projects and images are made by REST, since what belongs to them is the application's business. People, browser
sessions, tokens, prompts and candidates are too many for that and are inserted, with their triggers.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from PIL import Image

from bench.browsers.installation import Installation

ADMIN = "admin@example.org"
SETTINGS = {"auto_rounds": False, "pool_target": 0}
CANDIDATES = 6
AT_ONCE = 50_000
SEND_IMAGES = 4

ADD_USERS = """
INSERT INTO users (email, role)
SELECT 'critic' || n || '@example.org', 'critic' FROM generate_series(1, %(count)s) n
ON CONFLICT DO NOTHING
"""
USER_IDS = "SELECT id FROM users WHERE email LIKE 'critic%%' AND role = 'critic' ORDER BY id LIMIT %(count)s"
ADD_SESSION = """
INSERT INTO sessions (token_hash, user_id, csrf_token, expires_at)
VALUES (%s, %s, %s, now() + interval '10 days')
"""
ADD_TOKEN = "INSERT INTO tokens (user_id, token_hash, scope) VALUES (%s, %s, %s)"
LET_IN = """
INSERT INTO memberships (project_id, user_id, role)
SELECT %(project)s, critic, 'critic' FROM unnest(%(critics)s::bigint[]) critic
ON CONFLICT DO NOTHING
"""
FILL = """
WITH pictures AS (SELECT array_agg(sha256 ORDER BY sha256) AS all_of_them FROM images), asked AS (
    INSERT INTO prompts (project_id, external_id, split, state, question, answer, priority)
    SELECT %(project)s, 'q-' || n, CASE n %% 10 WHEN 0 THEN 'val' WHEN 1 THEN 'test' ELSE 'train' END, 'ready',
        'What is it, number ' || n || '?', 'a duck', n %% 3
    FROM generate_series(%(first)s::bigint, %(last)s) n
    RETURNING id, priority
), shown AS (
    INSERT INTO prompt_images (prompt_id, position, sha256)
    SELECT asked.id, 0, all_of_them[1 + asked.id %% cardinality(all_of_them)] FROM asked, pictures
), offered AS (
    INSERT INTO candidate_sets (project_id, prompt_id, source, state, answer, answer_source, priority, slots)
    SELECT %(project)s, id, 'imported', 'ready', 'a duck', 'gold', priority, %(overlap)s FROM asked
    RETURNING id
)
INSERT INTO candidates (candidate_set_id, position, text, temperature, mean_logprob)
SELECT offered.id, n, 'because of reason number ' || n || ' that can be seen in the image', 0.7, -0.5 - n / 10.0
FROM offered, generate_series(0, %(candidates)s - 1) n
"""
# The references of the shipped scenes as candidates, so that a round has something true to learn.
OFFER_REFERENCES = """
WITH asked AS (
    UPDATE prompts SET state = 'ready'
    WHERE id IN (
        SELECT id FROM prompts
        WHERE project_id = %(project)s AND split = 'train' AND state = 'waiting'
            AND jsonb_array_length("references") > 1
        ORDER BY id LIMIT %(count)s
    )
    RETURNING id, answer, "references" AS texts
), offered AS (
    INSERT INTO candidate_sets (project_id, prompt_id, source, state, answer, answer_source, slots)
    SELECT %(project)s, id, 'imported', 'ready', answer, 'gold', 1 FROM asked
    RETURNING id, prompt_id
)
INSERT INTO candidates (candidate_set_id, position, text)
SELECT offered.id, one.number - 1, one.text
FROM offered JOIN asked ON asked.id = offered.prompt_id,
    jsonb_array_elements_text(asked.texts) WITH ORDINALITY AS one (text, number)
"""
# Judged sets for an export, as if the admin had judged them.
JUDGE_ALL = [
    """INSERT INTO assignments (project_id, candidate_set_id, critic_id, slot, state, shown, expires_at)
    SELECT %(project)s, s.id, %(critic)s, 1, 'judged',
        ARRAY(SELECT c.id FROM candidates c WHERE c.candidate_set_id = s.id ORDER BY c.position), now()
    FROM candidate_sets s WHERE s.project_id = %(project)s""",
    """INSERT INTO verdicts
        (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, shown, seconds)
    SELECT %(project)s, a.id, s.id, s.prompt_id, %(critic)s, 'picked', a.shown, 4.2
    FROM assignments a JOIN candidate_sets s ON s.id = a.candidate_set_id
    WHERE a.project_id = %(project)s ORDER BY a.id""",
    """INSERT INTO picks (verdict_id, candidate_id)
    SELECT id, shown[1 + id %% 6] FROM verdicts WHERE project_id = %(project)s""",
    "UPDATE candidate_sets SET state = 'judged', taken = 1 WHERE project_id = %(project)s",
    "UPDATE prompts SET state = 'judged', has_accepted = true WHERE project_id = %(project)s",
]
TOO_MANY = """
SELECT count(*) FROM (
    SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id
    WHERE a.state IN ('open', 'judged') AND a.purpose = 'work' GROUP BY s.id HAVING count(*) > s.slots
) broken
"""
TWICE = "SELECT count(*) FROM (SELECT FROM verdicts WHERE current GROUP BY assignment_id HAVING count(*) > 1) broken"
MISCOUNTED = """
SELECT count(*) FROM candidate_sets s LEFT JOIN (
    SELECT candidate_set_id, count(*) AS n FROM assignments
    WHERE state IN ('open', 'judged') AND purpose = 'work' GROUP BY 1
) a ON a.candidate_set_id = s.id
WHERE s.taken <> coalesce(a.n, 0)
"""
STORED = "SELECT count(*) FROM verdicts WHERE project_id = %(project)s AND current"


@dataclass(frozen=True, slots=True)
class Person:
    """A critic with a browser that is signed in, and a token."""

    user_id: int
    cookie: str
    csrf: str
    token: str


class Stock:
    """Fills one installation while it is served."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        with self.connect() as connection:
            found = connection.execute("SELECT id FROM users WHERE email = %s", [ADMIN]).fetchone()
            added = (
                found
                or connection.execute(
                    "INSERT INTO users (email, role) VALUES (%s, 'admin') RETURNING id", [ADMIN]
                ).fetchone()
            )
            assert added is not None
            self.admin_id: int = added[0]
            self.admin_token = secrets.token_urlsafe(32)
            connection.execute(ADD_TOKEN, [self.admin_id, hash_secret(self.admin_token), "admin"])

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the installation's database."""
        return psycopg.connect(self.installation.database_url, autocommit=True)

    def rest(self, method: str, path: str, body: bytes | dict[str, Any] = b"", kind: str = "application/json") -> Any:
        """Call the installation's REST interface as the admin; the answer's JSON. Raises `SystemExit`."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.installation.base_url}/api/v1{path}",
            data=data or None,
            method=method,
            headers={"Authorization": f"Bearer {self.admin_token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read(2000)!r}") from error
        return json.loads(content) if content else None

    def send_file(self, path: str, name: str, content: bytes) -> Any:
        """Send a file as the form field `file`."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        return self.rest("POST", path, body, f"multipart/form-data; boundary={mark}")

    def add_images(self, count: int) -> list[str]:
        """Have `count` different images: the shipped scenes, each many times with another pixel. Their sha256."""
        with self.connect() as connection:
            known = [row[0] for row in connection.execute("SELECT sha256 FROM images ORDER BY created_at").fetchall()]
        if len(known) >= count:
            return known[:count]
        folder = self.installation.root / "starter" / "scenes" / "images"
        scenes = sorted(folder.glob("*.png"))
        lock, opened = threading.Lock(), dict[Path, Image.Image]()

        def add(number: int) -> str:
            path = scenes[number % len(scenes)]
            with lock:
                if path not in opened:
                    opened[path] = Image.open(path).convert("RGB")
                picture = opened[path].copy()
            picture.putpixel((0, 0), (number % 256, number // 256 % 256, 77))
            file = io.BytesIO()
            picture.save(file, "PNG")
            return str(self.send_file("/images", "scene.png", file.getvalue())["sha256"])

        with ThreadPoolExecutor(SEND_IMAGES) as pool:
            return known + list(pool.map(add, range(len(known), count)))

    def add_people(self, count: int) -> list[Person]:
        """So many critics, each with a new session and a new token."""
        with self.connect() as connection, connection.transaction():
            connection.execute(ADD_USERS, {"count": count})
            ids = [row[0] for row in connection.execute(USER_IDS, {"count": count}).fetchall()]
            people = [Person(one, *(secrets.token_urlsafe(32) for _ in range(3))) for one in ids]
            with connection.cursor() as cursor:
                cursor.executemany(ADD_SESSION, [(hash_secret(one.cookie), one.user_id, one.csrf) for one in people])
                cursor.executemany(ADD_TOKEN, [(one.user_id, hash_secret(one.token), "write") for one in people])
        return people

    def add_project(self, slug: str, *, prompts: int, overlap: int, say: bool = False, **settings: Any) -> int:
        """A project of so many prompts with a ready candidate set each. Its id."""
        began = time.monotonic()
        made = self.rest("POST", "/projects", {"slug": slug, **SETTINGS, "overlap": overlap, **settings})
        project = int(made["id"])
        for first in range(1, prompts + 1, AT_ONCE):
            last = min(prompts, first + AT_ONCE - 1)
            values = {"project": project, "first": first, "last": last, "overlap": overlap, "candidates": CANDIDATES}
            with self.connect() as connection:
                connection.execute(FILL, values)
        if prompts:
            self.settle()
        if say:
            print(f"{prompts:,} prompts of {CANDIDATES} candidates in {time.monotonic() - began:.0f} s", flush=True)
        return project

    def find_project(self, slug: str) -> int | None:
        """The id of a project that is there already."""
        with self.connect() as connection:
            found = connection.execute("SELECT id FROM projects WHERE slug = %s", [slug]).fetchone()
        return None if found is None else int(found[0])

    def let_in(self, project: int, people: Sequence[Person]) -> None:
        """Make critics members of a project."""
        with self.connect() as connection:
            connection.execute(LET_IN, {"project": project, "critics": [one.user_id for one in people]})

    def judge_all(self, project: int) -> None:
        """Have the admin have judged every set of a project."""
        with self.connect() as connection, connection.transaction():
            for statement in JUDGE_ALL:
                connection.execute(statement, {"project": project, "critic": self.admin_id})

    def offer_references(self, project: int, count: int) -> None:
        """Offer the references of a project's first `count` train prompts as candidates."""
        with self.connect() as connection:
            connection.execute(OFFER_REFERENCES, {"project": project, "count": count})

    def settle(self) -> None:
        """Bring the tables to the state that a running installation's are in: vacuumed, analysed, written out."""
        with self.connect() as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    def broken_rules(self) -> dict[str, int]:
        """How often a rule of judging is broken in the database; all are 0 where everything is right."""
        rules = {"too many critics": TOO_MANY, "two current verdicts": TWICE, "taken miscounted": MISCOUNTED}
        with self.connect() as connection:
            return {name: int(connection.execute(query).fetchone()[0]) for name, query in rules.items()}  # type: ignore[index]

    def stored_verdicts(self, project: int) -> int:
        """How many verdicts of a project stand."""
        with self.connect() as connection:
            found = connection.execute(STORED, {"project": project}).fetchone()
        return int(found[0]) if found else 0


def hash_secret(plain: str) -> str:
    """What the application keeps of a cookie or a token."""
    return hashlib.sha256(plain.encode()).hexdigest()
