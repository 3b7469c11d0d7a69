"""How long every page and every list of the REST interface takes in a large project.

    python bench/pages.py [--prompts 1000000] [--candidates 10] [--verdicts 100000] [--critics 50] [--requests 20]

Starts a PostgreSQL and a web server of its own (`illume serve`), fills a project by SQL, lets critics have judged some
of it, and asks for one page after the other, as an admin, a critic and a program, one request at a time. Counts are
folded by a sweep before. Prints the 95th percentile of each, the slowest first; ends with 1 where one is over 300 ms or
answers anything but 200.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app import connect, migrate
from app.db import session_scope
from app.embedded import Embedded
from app.models import Role, Scope, User
from app.services import sweep, users
from app.services.actors import SYSTEM
from bench import filling
from bench.serving import free_port, serve

SLUG = "bench"
LIMIT_MS = 300.0
REVIEWS = """
INSERT INTO reviews (project_id, candidate_set_id, verdict_id, kind)
SELECT v.project_id, v.candidate_set_id, v.id, 'flag' FROM verdicts v
WHERE v.project_id = :project ORDER BY id LIMIT 2000
"""
FIRST = """
SELECT (SELECT min(id) FROM prompts WHERE project_id = :project AND state = 'judged') AS prompt,
    (SELECT min(id) FROM verdicts WHERE project_id = :project) AS verdict
"""
# Of the pages, what is asked for; {p} is the first prompt that was judged, {v} its verdict, {c} a critic.
ADMIN = (
    "/admin",
    "/admin/projects/bench",
    "/admin/projects/bench/prompts",
    "/admin/projects/bench/prompts?state=judged",
    "/admin/projects/bench/prompts?state=held",
    "/admin/projects/bench/prompts?split=val&state=ready",
    "/admin/projects/bench/prompts?said=accepted",
    "/admin/projects/bench/prompts?said=open",
    "/admin/projects/bench/prompts?said=flagged",
    "/admin/projects/bench/prompts?said=apart",
    "/admin/projects/bench/prompts?said=alike",
    "/admin/projects/bench/prompts?version=0",
    "/admin/projects/bench/prompts?query=number+999999",
    "/admin/projects/bench/prompts?query=nowhere",
    "/admin/projects/bench/prompts/{p}",
    "/admin/projects/bench/critics",
    "/admin/projects/bench/critics/{c}",
    "/admin/projects/bench/review",
    "/admin/projects/bench/rounds",
    "/admin/projects/bench/rounds/preview",
    "/admin/projects/bench/versions",
    "/admin/projects/bench/settings",
    "/admin/projects/bench/imports",
    "/admin/projects/bench/webhooks",
    "/admin/projects/bench/comparisons",
    "/admin/users",
    "/admin/users/{c}",
    "/admin/audit",
)
CRITIC = (
    "/annotate",
    "/annotate/bench",
    "/annotate/bench/figures",
    "/annotate/bench/day",
    "/annotate/bench/history",
    "/annotate/bench/history?words=reason",
)
REST = (
    "/projects",
    "/projects/bench",
    "/projects/bench/stats",
    "/projects/bench/prompts?limit=100",
    "/projects/bench/prompts?limit=1000",
    "/projects/bench/prompts?state=judged",
    "/projects/bench/prompts?state=held",
    "/projects/bench/prompts?external_id=q-999999",
    "/projects/bench/prompts?query=nowhere",
    "/prompts/{p}",
    "/projects/bench/verdicts",
    "/projects/bench/verdicts?limit=1000",
    "/projects/bench/verdicts?critic={c}",
    "/verdicts/{v}",
    "/projects/bench/rounds",
    "/projects/bench/rounds/preview",
    "/projects/bench/versions",
    "/projects/bench/snapshots",
    "/projects/bench/imports",
    "/projects/bench/gold",
    "/projects/bench/standings",
    "/projects/bench/reviews",
    "/users",
    "/users/{c}",
    "/webhooks",
)


@dataclass(frozen=True)
class Timed:
    """A path, its slowest statuses and its times in milliseconds, sorted."""

    who: str
    path: str
    status: int
    times: tuple[float, ...]

    @property
    def p95(self) -> float:
        """Milliseconds that 95 % of the requests took at most."""
        return self.times[min(len(self.times) - 1, int(0.95 * len(self.times)))]


def measure(client: httpx.Client, who: str, path: str, requests: int) -> Timed:
    """Ask for a page again and again; once before it counts."""
    status = client.get(path).status_code
    times = []
    for _ in range(requests):
        if sum(times) > 20_000:  # too slow by far: no need to see it twenty times
            break
        began = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - began))
        status = max(status, answer.status_code)
    return Timed(who, path, status, tuple(sorted(times)))


def prepare(options: argparse.Namespace) -> tuple[dict[str, int], str, str, str]:
    """Fill the project. What paths name, an admin's cookie and token, and a critic's cookie."""
    began = time.monotonic()
    filling.add_images()
    critics, _ = filling.add_critics(options.critics)
    project = filling.add_project(SLUG, prompts=options.prompts, candidates=options.candidates, say=True)
    filling.let_in(project, critics)
    filling.judge_before(project, critics, done=options.verdicts)
    filling.patiently(REVIEWS, {"project": project})
    with session_scope() as session:
        admin = users.add_user(session, SYSTEM, email="admin@example.org", role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
        cookies = [users.open_web_session(session, who)[0] for who in (admin, session.get_one(User, critics[0]))]
        found = session.execute(text(FIRST), {"project": project}).one()
    filling.settle()
    sweep.run()
    print(f"{options.verdicts} verdicts of {options.critics} critics; all of it in {time.monotonic() - began:.0f} s\n")
    return {"p": found.prompt, "v": found.verdict, "c": critics[0]}, cookies[0], token, cookies[1]


def bench(options: argparse.Namespace, folder: Path) -> bool:
    """Ask for everything, and print the table. Whether all was in time."""
    names, admin, token, critic = prepare(options)
    port = free_port()
    server = serve(port, 1, folder / "web.log")
    base = f"http://127.0.0.1:{port}"
    try:
        found = []
        for who, paths, headers, prefix in (
            ("admin", ADMIN, {"Cookie": f"illume_session={admin}"}, ""),
            ("critic", CRITIC, {"Cookie": f"illume_session={critic}"}, ""),
            ("REST", REST, {"Authorization": f"Bearer {token}"}, "/api/v1"),
        ):
            with httpx.Client(base_url=base + prefix, headers=headers, timeout=120) as client:
                for path in paths:
                    found.append(measure(client, who, path.format(**names), options.requests))
                    print(f"{found[-1].p95:8.0f} ms  {who} {found[-1].path}", file=sys.stderr, flush=True)
    finally:
        server.terminate()
        server.wait(30)
    show(found)
    return all(one.p95 <= LIMIT_MS and one.status == 200 for one in found)


def show(found: list[Timed]) -> None:
    """The table, the slowest first."""
    load_now = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(f"{psutil.cpu_count()} cores; load (1, 5, 15 minutes): {load_now}; p95 is to be at most {LIMIT_MS:.0f} ms\n")
    print("| who | path | status | median (ms) | p95 (ms) |\n|---|---|---|---|---|")
    for one in sorted(found, key=lambda one: -one.p95):
        median = one.times[len(one.times) // 2]
        print(f"| {one.who} | `{one.path}` | {one.status} | {median:.0f} | {one.p95:.0f} |")


def main() -> int:
    """Run against a database of our own."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=10, help="of each prompt")
    parser.add_argument("--verdicts", type=int, default=100_000)
    parser.add_argument("--critics", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20, help="for each page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": name, "ILLUME_SECRET_KEY": "a key for this bench only"}
        with Embedded(folder) as services:
            connect.use({"database_url": services.database_url, "redis_url": services.redis_url})
            try:
                migrate.upgrade(services.database_url)
                return 0 if bench(options, folder) else 1
            finally:
                connect.forget_settings()


if __name__ == "__main__":
    sys.exit(main())
