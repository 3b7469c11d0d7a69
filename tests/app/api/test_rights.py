"""Who sees what: every call and every page, for every role; and every field of every answer for critics.

The calls come from the OpenAPI description, the pages from the routers. A call, a page or a field that is new fails
here until somebody decides whether critics see it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from fastapi.routing import iter_route_contexts
from httpx2 import Response
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.api.schemas import Out, PolicyOut, ProjectOut, PromptOut, RoundOut
from app.http.dependencies import SESSION_COOKIE
from app.http.gate import SMALL_BODY
from app.main import create_app
from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    Import,
    Policy,
    PolicyVersion,
    Project,
    Prompt,
    PromptImage,
    Purpose,
    Review,
    ReviewKind,
    Role,
    Round,
    RoundState,
    Scope,
    User,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.accounts import sessions, users
from app.services.integrations import webhooks
from app.services.kernel.actors import SYSTEM
from app.services.kernel.rights import RIGHTS, SEES, Right
from app.services.kernel.visible_fields import FIELDS, AnswerShape, may_see, shown_to
from app.services.projects.projects import ProjectSettings
from app.services.quality import gold, reviews
from app.services.read_models import critic_day
from app.services.rounds import rounds, snapshots
from app.settings import ROOT
from tests import factories
from tests.app.api.conftest import As, make_comparison, personal_items
from tests.app.api.description import DESCRIPTION
from tests.app.services.feedback import judge
from tests.conftest import CommittedDatabase

CALLS = [
    (method.upper(), path, call) for path, methods in DESCRIPTION["paths"].items() for method, call in methods.items()
]
REFERENCE, METADATA, OTHERS_WORDS = "a secret reference", "a secret remark", "what another critic wrote"
OTHER_CRITIC, OTHERS_NAME = "another-critic@example.org", "Ottilie Other"
SEED, LOGPROB = 918273645, -0.123456789
BLIND = "/api/v1/assignments/{assignment_id}/fields"
PRACTISED = "/api/v1/projects/{slug}/practice/{gold_id}/fields"
# Calls about structured answers, with what is named otherwise in their paths.
STRUCTURED: Mapping[str, Mapping[str, str]] = {
    BLIND: {"assignment_id": "blind_id"},
    PRACTISED: {"slug": "structured_slug", "gold_id": "structured_gold_id"},
}
BODIES: Mapping[tuple[str, str], Any] = {
    ("POST", "/api/v1/assignments/{assignment_id}/verdict"): {"kind": "none_fit"},
    ("PUT", "/api/v1/verdicts/{verdict_id}"): {"kind": "none_fit"},
    ("POST", BLIND): {"fields": {"rating": "Unsafe", "category": factories.CATEGORIES[0]}},
    ("POST", PRACTISED): {"fields": {"rating": "Unsafe", "category": factories.CATEGORIES[0]}},
    ("POST", "/api/v1/projects/{slug}/practice/{gold_id}"): {"picks": []},
}
SECRETS = (REFERENCE, METADATA, OTHERS_WORDS, OTHER_CRITIC, OTHERS_NAME, str(SEED), str(LOGPROB), "temperature")


@dataclass(frozen=True)
class World:
    """A project with one of everything, and the parts of paths that name them; `critic` is the one who looks."""

    project: Project
    critic: User
    named: Mapping[str, str]


@pytest.fixture
def world(committed_db: CommittedDatabase) -> World:
    """What two critics, a worker and an admin leave behind, with a secret wherever a critic must not look."""
    with committed_db.sessions() as session:
        made = make_world(session)
        session.commit()
    return made


def make_world(session: Session) -> World:
    """The world, not committed."""
    project = factories.make_project(session, round_every=1000, overlap=2, practice_prompts=1)
    critic = factories.make_member(session, project, user=factories.make_user(session, role=Role.critic))
    other = factories.make_member(
        session, project, user=factories.make_user(session, email=OTHER_CRITIC, name=OTHERS_NAME)
    )
    me, them = factories.actor_of(critic), factories.actor_of(other)
    judge(session, project, them)
    mine = factories.make_candidate_set(session, project, slots=2)
    given = factories.make_verdict(session, factories.make_assignment(session, mine, me))
    theirs = factories.make_verdict(
        session, factories.make_assignment(session, mine, them, slot=2), rationale=OTHERS_WORDS
    )
    theirs.comment = OTHERS_WORDS
    flagged = factories.make_candidate_set(session, project)
    released = factories.make_assignment(session, flagged, me, state=AssignmentState.released)
    flag = factories.make_verdict(session, released, kind=VerdictKind.flagged)
    reviews.open_review(session, flag.id, ReviewKind.flag)
    personal = personal_items(session, project, critic, given)
    hidden_gold(session, project, critic)
    compared = make_comparison(session, project)
    snapshot = snapshots.freeze(session, SYSTEM, project)
    started = rounds.start(session, SYSTEM, project)
    started.snapshot_id = snapshot.id
    started.metrics, started.progress = {"rouge_l": 0.5}, {"fraction": 0.5}
    hook, _ = webhooks.add_webhook(session, SYSTEM, url="https://8.8.8.8/", events=["verdict"], project=project)
    token, _ = users.create_token(session, SYSTEM, user_id=other.id, scope=Scope.read)
    claim = factories.make_assignment(session, factories.make_candidate_set(session, project), me)
    factories.make_candidate_set(session, project)  # to be claimed
    blind = blind_claim(session, critic)
    structured = session.get_one(Project, blind.project_id)
    factories.make_policy(session, project)
    made = factories.add(session, Import(project_id=project.id, filename="x.jsonl", file_key="0" * 64))
    set_secrets(session, project)
    return World(
        project,
        critic,
        {
            **personal,
            **compared,
            "slug": project.slug,
            "sha256": session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id == given.prompt_id)).one(),
            "prompt_id": str(given.prompt_id),
            "import_id": str(made.id),
            "assignment_id": str(claim.id),
            "blind_id": str(blind.id),
            "structured_slug": structured.slug,
            "structured_gold_id": structured_practice(session, structured),
            "verdict_id": str(given.id),
            "review_id": str(session.scalars(select(Review.id)).first()),
            "round_id": str(started.id),
            "version_id": str(project.active_version_id),
            "snapshot_id": str(snapshot.id),
            "user_id": str(other.id),
            "critic_id": str(other.id),
            "token_id": str(token.id),
            "webhook_id": str(hook.id),
            "delivery_id": "1",
            "erasure_id": "1",
            "engine_id": "1",
        },
    )


def blind_claim(session: Session, critic: User) -> Assignment:
    """A claim in a project of structured answers, before its candidates are shown."""
    project, policy = factories.structured_project(session, round_every=1000, practice_prompts=1)
    factories.make_member(session, project, user=critic)
    gold: dict[str, str | None] = {"rating": "Safe", "category": "NA"}
    prompt = factories.make_prompt(session, project, policy=policy, answer=None, fields=gold)
    offered = factories.make_candidate_set(session, project, prompt=prompt, texts=[factories.answer("a cat")])
    set_secrets(session, project)
    claim = factories.make_assignment(session, offered, factories.actor_of(critic))
    claim.is_blind = True
    session.flush()
    return claim


def structured_practice(session: Session, project: Project) -> str:
    """A practice prompt in the project of structured answers, whose picture nobody has rated."""
    [policy] = session.scalars(select(PolicyVersion).join(Policy).where(Policy.project_id == project.id))
    right: dict[str, str | None] = {"rating": "Safe", "category": "NA"}
    prompt = factories.make_prompt(session, project, policy=policy, answer=None, fields=right)
    fits = [gold.GoldCandidate(text="it fits", fits=True)]
    item = gold.GoldIn(prompt=str(prompt.id), candidates=fits, practice=True)
    made = gold.add_gold(session, SYSTEM, project, item)
    set_secrets(session, project)
    return str(made["id"])


def hidden_gold(session: Session, project: Project, critic: User) -> Verdict:
    """A gold prompt that the critic judged without knowing what it was."""
    prompt = factories.make_prompt(session, project)
    fits = [gold.GoldCandidate(text="it fits", fits=True), gold.GoldCandidate(text="it does not", fits=False)]
    made = gold.add_gold(session, SYSTEM, project, gold.GoldIn(prompt=str(prompt.id), candidates=fits))
    offered = session.get_one(CandidateSet, int(made["candidate_set"]))
    claim = factories.make_assignment(session, offered, factories.actor_of(critic))
    claim.purpose = Purpose.gold
    verdict = factories.make_verdict(session, claim)
    verdict.state = VerdictState.gold
    session.flush()
    return verdict


def set_secrets(session: Session, project: Project) -> None:
    """Give each prompt and each candidate what critics must not see."""
    mine = Prompt.project_id == project.id
    session.execute(update(Prompt).where(mine).values(references=[REFERENCE], extra={"remark": METADATA}))
    session.execute(update(Candidate).values(temperature=0.7, seed=SEED, mean_logprob=LOGPROB))


def fields_in(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields of an answer. Ids that serve as keys are written as a star."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from fields_in(one, f"{path}.{'*' if key.isdigit() else key}".lstrip("."))
    elif isinstance(value, list) and value:
        for one in value:
            yield from fields_in(one, path)
    else:
        yield path


def send(client: TestClient, world: World, method: str, path: str, call: Mapping[str, Any]) -> Response:
    """One call with the objects of the world, and the example of its body."""
    named = {**world.named, **{name: world.named[other] for name, other in STRUCTURED.get(path, {}).items()}}
    url = re.sub(r"{(\w+)}", lambda found: named[found.group(1)], path)
    params = {"critic": "me"} if any(one["name"] == "critic" for one in call.get("parameters", ())) else {}
    content = call.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        return client.request(method, url, files={"file": ("a.png", factories.image_bytes())})
    body = BODIES.get((method, path), content.get("application/json", {}).get("example"))
    return client.request(method, url, params=params, **({} if body is None else {"json": body}))


def rows_of(answer: Response) -> Any:
    """The JSON of an answer: of a stream, its rows."""
    if answer.headers.get("content-type", "").startswith("application/x-ndjson"):
        return [orjson.loads(line) for line in answer.content.splitlines()]
    return answer.json() if answer.content and answer.headers.get("content-type") == "application/json" else {}


@contextlib.contextmanager
def client_of(committed: CommittedDatabase, world: World, role: Role | None) -> Iterator[TestClient]:
    """A client of one who has this role in the project, by token and by cookie; None is no member."""
    with committed.sessions() as session:
        user = world.critic if role is Role.critic else factories.make_user(session)
        if role not in (None, Role.critic):
            factories.make_member(session, world.project, role, user=user)
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.admin)
        cookie, _ = sessions.open_web_session(session, user)
        session.commit()
    headers = {"Authorization": f"Bearer {token}"}
    with TestClient(create_app(), headers=headers, cookies={SESSION_COOKIE: cookie}) as client:
        yield client


def order(call: tuple[str, str, Any]) -> int:
    """Practice comes before claims, what was sent back before it is changed; a release and the last pair at the end."""
    if "/practice" in call[1] or "/returned" in call[1]:
        return 0
    return 2 if call[1].endswith(("/release", "/pairs/last")) else 1


CLAIM = """
    id state expires_at candidates.id candidates.text prompt.id prompt.external_id prompt.split prompt.state
    prompt.question prompt.answer prompt.images.sha256 prompt.images.url prompt.images.width prompt.images.height
    prompt.parts.type prompt.parts.text prompt.parts.sha256
"""
POLICY = """
    policy.id policy.name policy.number policy.text policy.preamble policy.categories.name policy.categories.status
    policy.categories.text
"""
REVEALED = f"""
    {CLAIM} candidates.fields.rating candidates.fields.category candidates.fields.rationale fields.rating
    fields.category warnings {POLICY}
"""
PRACTICE = """
    item.id item.question item.answer item.left item.candidates.id item.candidates.text item.images.sha256
    item.images.url item.images.width item.images.height item.parts.type item.parts.text item.parts.sha256
"""
ANSWER_FIELDS = " ".join(
    f"answer_fields.{name}"
    for name in ["name", "kind", "role", "choices", "ordinal", "positive", "none", "required", "description"]
)
VERDICT = """
    schema_version id prompt candidate_set assignment critic kind state picks tags reason rationale edited_from comment
    seconds exhaustive shown supersedes current deleted snapshots created_at
"""
IMAGES = "images.sha256 images.url images.width images.height"
PARTS = "parts.type parts.text parts.sha256"


def fields_of(shape: AnswerShape) -> str:
    """The fields of an answer that critics may see by the table."""
    return " ".join(name for name in FIELDS[shape] if may_see(shape, name, RIGHTS[Role.critic]))


def listed(fields: str) -> str:
    """The fields of a list."""
    return " ".join(["next", "items", *(f"items.{name}" for name in fields.split())])


PROJECT, PROMPT, ROUND = (fields_of(one) for one in (AnswerShape.project, AnswerShape.prompt, AnswerShape.round))
STATS = """
    counts.prompts.total counts.prompts.train counts.prompts.val counts.prompts.test counts.rounds
    next_round.round_every next_round.auto active_round.id active_round.number active_round.state
    active_round.progress.fraction
"""
RECORD = fields_of(AnswerShape.record)
# What critics get: all calls that answer them, and all fields of the answers. Whatever is not here, they must not get.
SHOWN_TO_CRITICS: Mapping[tuple[str, str], str] = {
    ("POST", "/projects/{slug}/assignments"): CLAIM,
    ("GET", "/assignments/{assignment_id}"): CLAIM,
    ("POST", "/assignments/{assignment_id}/heartbeat"): CLAIM,
    ("POST", "/assignments/{assignment_id}/fields"): REVEALED,
    ("POST", "/assignments/{assignment_id}/release"): "",
    ("POST", "/assignments/{assignment_id}/verdict"): VERDICT,
    ("GET", "/verdicts/{verdict_id}"): VERDICT,
    ("PUT", "/verdicts/{verdict_id}"): VERDICT,
    ("GET", "/projects/{slug}/verdicts"): listed(VERDICT),
    ("POST", "/images"): "sha256 url width height media_type size changes",
    ("GET", "/images/{sha256}"): "",
    ("GET", "/projects"): listed(f"{PROJECT} {ANSWER_FIELDS}"),
    ("GET", "/projects/{slug}"): PROJECT,
    ("GET", "/projects/{slug}/stats"): STATS,
    ("GET", "/projects/{slug}/prompts"): listed(f"{PROMPT} {IMAGES} {PARTS}"),
    ("GET", "/prompts/{prompt_id}"): f"{PROMPT} {IMAGES} {PARTS}",
    ("GET", "/projects/{slug}/policies"): listed(
        f"{fields_of(AnswerShape.policy)} categories.name categories.status categories.texts.default"
        " categories.texts.allowed categories.texts.strict"
    ),
    ("GET", "/projects/{slug}/practice"): PRACTICE,
    ("POST", "/projects/{slug}/practice/{gold_id}/fields"): f"""
        {PRACTICE} item.fields.rating item.fields.category {POLICY.replace(" policy.", " item.policy.")}
    """,
    ("POST", "/projects/{slug}/practice/{gold_id}"): """
        score known.* picked wrong explanation left fields gold wrong_fields
    """,
    ("GET", "/projects/{slug}/returned"): listed("id verdict assignment note prompt question created_at"),
    ("POST", "/returned/{returned_id}/stand"): "",
    ("GET", "/projects/{slug}/rounds"): listed(f"{ROUND} progress.fraction"),
    ("GET", "/rounds/{round_id}"): f"{ROUND} progress.fraction",
    ("GET", "/projects/{slug}/pairs/last"): f"id question answer {IMAGES} {PARTS} left right to_judge said",
    ("GET", "/projects/{slug}/pairs/next"): f"id question answer {IMAGES} {PARTS} left right to_judge",
    ("POST", "/projects/{slug}/pairs/{pair_id}/preference"): "",
    ("GET", "/projects/{slug}/dataset"): f"{RECORD} images.sha256 images.path images.width images.height {PARTS}",
    ("GET", "/users/me"): "id email name role projects disabled created_at",
}


class TestCritics:
    def test_get_the_fields_that_somebody_decided_on(self, committed_db: CommittedDatabase, world: World) -> None:
        wrong: list[str] = []
        with client_of(committed_db, world, Role.critic) as client:
            for method, path, call in sorted(CALLS, key=order):
                answer = send(client, world, method, path, call)
                shown = SHOWN_TO_CRITICS.get((method, path.removeprefix("/api/v1")))
                if shown is None:
                    wrong += [] if answer.status_code in (403, 404) else [f"{method} {path}: {answer.status_code}"]
                    continue
                found = set(fields_in(rows_of(answer))) - {""}
                wrong += [f"{method} {path}: {name} is new" for name in found - set(shown.split())]
                wrong += [f"{method} {path}: {answer.status_code}"] if answer.status_code >= 300 else []
                wrong += [f"{method} {path}: no field"] if shown and not found else []
                wrong += [f"{method} {path}: '{secret}'" for secret in SECRETS if secret in answer.text]
        assert not wrong, "\n".join(wrong)


ROLES = (*RIGHTS, None)
# What answers have only where a project has `answer_fields`.
OF_STRUCTURED = {AnswerShape.stats: {"answers"}, AnswerShape.record: {"policy", "gold", "fields", "blind"}}
# Every other call that only reads, by the right that it needs; None: to administer the installation.
READ_WITH: Mapping[str, Right | None] = {
    **dict.fromkeys(("/versions/{version_id}", "/projects/{slug}/versions"), Right.sees_model),
    "/projects/{slug}/machine-critic": Right.sees_model,
    **dict.fromkeys(
        (
            "/projects/{slug}/rounds/preview",
            "/projects/{slug}/dataset/dataset_info",
            "/projects/{slug}/dataset/features",
        ),
        Right.sees_model,
    ),
    **dict.fromkeys(("/projects/{slug}/comparisons", "/comparisons/{comparison_id}"), Right.sees_others),
    "/comparisons/{comparison_id}/pairs": Right.sees_others,
    **dict.fromkeys(("/projects/{slug}/imports", "/imports/{import_id}"), Right.reviews),
    "/imports/{import_id}/problems": Right.reviews,
    **dict.fromkeys(("/projects/{slug}/gold", "/projects/{slug}/standings"), Right.reviews),
    **dict.fromkeys(("/projects/{slug}/reviews", "/reviews/{review_id}"), Right.reviews),
    **dict.fromkeys(("/projects/{slug}/snapshots", "/snapshots/{snapshot_id}"), Right.reviews),
    **dict.fromkeys(("/snapshots/{snapshot_id}/download", "/snapshots/{snapshot_id}/card"), Right.reviews),
    "/versions/{version_id}/adapter": Right.reviews,
    "/webhooks/{webhook_id}": Right.administers,
    "/webhooks/{webhook_id}/deliveries": Right.administers,
    **dict.fromkeys(("/users", "/users/{user_id}", "/users/{user_id}/tokens"), None),
    **dict.fromkeys(("/webhooks", "/erasures", "/erasures/{erasure_id}", "/engines", "/engines/{engine_id}"), None),
}
JUDGES_READ = ("/practice", "/returned", "/pairs/next", "/pairs/last")
OF_NOBODY = ("/api/v1/projects", "/api/v1/users/me")
OWN = "/api/v1/assignments/{assignment_id}"


def is_allowed(path: str, role: Role | None) -> bool:
    """Whether one with this role may read what is at `path`."""
    if path in OF_NOBODY:
        return True
    if role is None:
        return False
    known = path.removeprefix("/api/v1")
    if known in READ_WITH:
        need = READ_WITH[known]
        return need is not None and need in RIGHTS[role]
    assert ("GET", known) in SHOWN_TO_CRITICS, f"{path} is new: decide who may read it"
    if path == OWN:
        return role is Role.critic or Right.reviews in RIGHTS[role]
    return Right.judges in RIGHTS[role] or not known.endswith(JUDGES_READ)


class TestRoles:
    def test_each_reads_what_its_rights_say(self, committed_db: CommittedDatabase, world: World) -> None:
        wrong = []
        for role in ROLES:
            with client_of(committed_db, world, role) as client:
                for method, path, call in CALLS:
                    if method == "GET" and "adapter" not in path:  # version 0 has none
                        status = send(client, world, method, path, call).status_code
                        expected = (200, 204) if is_allowed(path, role) else (403, 404)
                        wrong += [] if status in expected else [f"{role} {path}: {status}"]
        assert not wrong, "\n".join(wrong)

    def test_who_sees_everything_gets_the_fields_that_were_decided_on(
        self, committed_db: CommittedDatabase, world: World
    ) -> None:
        with client_of(committed_db, world, Role.viewer) as client:
            base = f"/api/v1/projects/{world.project.slug}"
            prompt = client.get(f"/api/v1/prompts/{world.named['prompt_id']}").json()
            stats = client.get(f"{base}/stats").json()
            [record, *_] = rows_of(client.get(f"{base}/dataset"))
            answers = {
                AnswerShape.project: client.get(base).json(),
                AnswerShape.prompt: prompt,
                AnswerShape.round: client.get(f"{base}/rounds").json()["items"][0],
                AnswerShape.stats: stats,
                AnswerShape.record: record,
            }
        for shape, body in answers.items():
            names = {name for name in FIELDS[shape] if "." not in name} - OF_STRUCTURED.get(shape, set())
            assert set(body) == names, shape
        assert set(stats["counts"]) == within(AnswerShape.stats, "counts")
        assert set(record["candidates"][0]) == within(AnswerShape.record, "candidates") - {"fields", "invalid"}
        assert prompt["references"] == [REFERENCE]
        assert record["candidates"][0]["seed"] == str(SEED)


WITH_BODY = [one for one in CALLS if "requestBody" in one[2]]
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data; boundary=kSW3q1"
PART = b'--kSW3q1\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FORM_END = b"--kSW3q1--\r\n"
QUERY_TYPE = "application/x-www-form-urlencoded"
ODD_BODIES = (
    (JSON_TYPE, b""),
    (JSON_TYPE, b"{"),
    (JSON_TYPE, b"[]"),
    (JSON_TYPE, b"{}"),
    (JSON_TYPE, b'"\xe9"'),
    (JSON_TYPE, b'{"kind": 1, "name": "\\ud800", "pairs": "many", "unknown": 1}'),
    ("text/plain", b"?"),
    (FORM_TYPE, FORM_END),
    (FORM_TYPE, PART % (b"split", b"caf\xe9") + FORM_END),
    (FORM_TYPE, b"no part at all"),
)


class TestOddBodies:
    @pytest.mark.parametrize("role", [Role.viewer, Role.critic, None, "stranger"])
    def test_who_may_not_call_is_told_so_whatever_they_send(
        self, committed_db: CommittedDatabase, world: World, role: Role | str | None
    ) -> None:
        wrong, refused = [], 0
        with client_of(committed_db, world, role if isinstance(role, Role) else None) as client:
            if role == "stranger":
                client.headers.pop("Authorization")
                client.cookies.clear()
            for method, path, call in WITH_BODY:
                expected = send(client, world, method, path, call).status_code
                if expected not in (401, 403, 404):
                    assert role is Role.critic or path == "/api/v1/images", path
                    continue
                refused += 1
                same = (401,) if expected == 401 else (403, 404)  # a body may name a project that is not there
                url = re.sub(r"{(\w+)}", lambda found: world.named[found.group(1)], path)
                for kind, body in ODD_BODIES:
                    answer = client.request(method, url, content=body, headers={"Content-Type": kind})
                    if answer.status_code not in same:
                        wrong.append(f"{method} {path} {kind} {body!r}: {answer.status_code}, not {expected}")
        assert not wrong, "\n".join(wrong)
        assert refused > len(WITH_BODY) / 2

    @pytest.mark.parametrize("odd", [b"caf\xe9", b"\xed\xa0\x80", b"\x00"])
    def test_text_of_a_form_is_utf8_or_refused_by_name(
        self, committed_db: CommittedDatabase, world: World, odd: bytes
    ) -> None:
        tried = []
        with client_of(committed_db, world, Role.admin) as client:
            for method, path, call in WITH_BODY:
                shape = call["requestBody"]["content"].get("multipart/form-data")
                named = DESCRIPTION["components"]["schemas"][shape["schema"]["$ref"].split("/")[-1]] if shape else {}
                for field in named.get("properties", ()):
                    url = re.sub(r"{(\w+)}", lambda found: world.named[found.group(1)], path)
                    body = PART % (field.encode(), odd) + FORM_END
                    answer = client.request(method, url, content=body, headers={"Content-Type": FORM_TYPE})
                    assert (answer.status_code, answer.json()["field"]) == (422, field), (path, field, answer.text)
                    tried.append(field)
        assert {"mapping", "split", "propose_val", "scale_down", "file"} <= set(tried)


def declared(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all fields that the description gives an answer."""
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    if "$ref" in schema:
        schema = DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "items" in schema:
        yield from declared(schema["items"], path)
    elif "oneOf" in schema:
        for one in schema["oneOf"]:
            yield from declared(one, path)
    elif "properties" in schema:
        for name, one in schema["properties"].items():
            yield from declared(one, f"{path}.{name}".lstrip("."))
    else:
        yield path


NAMED_ANSWERS = ("/reviews", "/reviews/{review_id}", "/gold", "/returned", "/practice")


class TestShapes:
    @pytest.mark.parametrize("role", [Role.critic, Role.admin])
    def test_the_description_names_each_field_of_what_is_judged_and_reviewed(
        self, committed_db: CommittedDatabase, world: World, role: Role
    ) -> None:
        tried = 0
        with client_of(committed_db, world, role) as client:
            for method, path, call in CALLS:
                if method != "GET" or not path.endswith(NAMED_ANSWERS):
                    continue
                answer = send(client, world, method, path, call)
                if answer.status_code != 200 or rows_of(answer).get("items") == []:
                    continue
                tried += 1
                schema = call["responses"]["200"]["content"]["application/json"]["schema"]
                assert set(fields_in(rows_of(answer))) <= set(declared(schema)), path
        assert tried >= 2

    def test_changes_of_a_project_are_its_settings(self) -> None:
        schema = DESCRIPTION["components"]["schemas"]["ProjectChange"]
        assert set(schema["properties"]) == {*ProjectSettings.model_fields, "name"}
        assert not [name for name, one in schema["properties"].items() if "default" in one]
        assert not schema.get("required")


def within(shape: AnswerShape, owner: str) -> set[str]:
    """The fields of an object within an answer that were decided on."""
    return {name.partition(".")[2] for name in FIELDS[shape] if name.startswith(f"{owner}.")}


PAGES = sorted(
    {
        route.path
        for route in iter_route_contexts(create_app().routes)
        if route.path is not None and "GET" in (route.methods or ()) and re.match(r"/(admin|annotate|$)", route.path)
    }
)
ADMIN = "/admin/projects/{slug}"
# The pages that need more than to see everything; None: to administer the installation.
PAGES_WITH: Mapping[str, Right | None] = {
    **dict.fromkeys((f"{ADMIN}/gold", f"{ADMIN}/review", f"{ADMIN}/imports", f"{ADMIN}/publish"), Right.reviews),
    f"{ADMIN}/uploads": Right.reviews,
    **dict.fromkeys((f"{ADMIN}/imports/template.{{kind}}", f"{ADMIN}/imports/{{import_id}}"), Right.reviews),
    **dict.fromkeys((f"{ADMIN}/prompts/new", f"{ADMIN}/prompts/{{prompt_id}}/edit"), Right.reviews),
    f"{ADMIN}/prompts/matches": Right.reviews,
    **dict.fromkeys((f"{ADMIN}/prompts/{{prompt_id}}/gold", f"{ADMIN}/rounds/{{number}}/snapshot"), Right.reviews),
    **dict.fromkeys((f"{ADMIN}/settings", f"{ADMIN}/webhooks"), Right.administers),
    **dict.fromkeys((f"{ADMIN}/policies/new", f"{ADMIN}/policies/{{version_id}}/edit"), Right.administers),
    **dict.fromkeys(("/admin/engines", "/admin/engines/{engine_id}"), None),
    **dict.fromkeys(("/admin/audit", "/admin/base-checks/{check_id}", "/admin/erase/{kind}/{subject}"), None),
    **dict.fromkeys(("/admin/erasures", "/admin/new-project", "/admin/new-project/preview"), None),
    "/admin/new-project/slug": None,
    **dict.fromkeys(("/admin/users", "/admin/users/{user_id}"), None),
}
JUDGING = "/annotate/{slug}"
OF_EVERYBODY = ("/", "/admin", "/annotate")


def may_open(path: str, role: Role | None) -> bool:
    """Whether one with this role may open a page."""
    rights = frozenset() if role is None else RIGHTS[role]
    if path in PAGES_WITH:
        need = PAGES_WITH[path]
        return need is not None and need in rights
    assert path.startswith((ADMIN, "/annotate/{slug}")), f"{path} is new: decide who may open it"
    return rights >= SEES if path.startswith(ADMIN) else Right.judges in rights


class TestPages:
    def test_each_opens_what_its_rights_say(self, committed_db: CommittedDatabase, world: World) -> None:
        wrong = []
        for role in ROLES:
            with client_of(committed_db, world, role) as client:
                del client.headers["Authorization"]
                for path in (one for one in PAGES if one not in OF_EVERYBODY):
                    status = client.get(page_url(path, world)).status_code
                    is_refused = status == 403 or (role is None and status == 404)
                    wrong += (
                        [] if is_refused is not may_open(path, role) and status < 500 else [f"{role} {path}: {status}"]
                    )
        assert not wrong, "\n".join(wrong)

    def test_those_of_critics_hold_nothing_secret(self, committed_db: CommittedDatabase, world: World) -> None:
        with client_of(committed_db, world, Role.critic) as client:
            del client.headers["Authorization"]
            pages = {path: client.get(page_url(path, world)).text for path in PAGES if "/admin" not in path}
        assert "umbrella" in pages["/annotate/{slug}/history"]
        assert [(path, one) for path, page in pages.items() for one in SECRETS if one in page] == []


def page_url(path: str, world: World) -> str:
    """The address of a page, with the objects of the world."""
    known = {"kind": "images", "subject": world.named["sha256"], **world.named}
    return re.sub(r"{(\w+)(?::\w+)?}", lambda found: known.get(found.group(1), "1"), path)


POSTS = sorted(
    {
        route.path
        for route in iter_route_contexts(create_app().routes)
        if route.path is not None and "POST" in (route.methods or ()) and not route.path.startswith("/api/")
    }
)
OF_STRANGERS = ("/sign-in", "/account/link/{token}")
"""The forms that nobody needs to be signed in for."""
OF_ONESELF = ("/account/", "/sign-out")
FORM_BODIES = (
    (QUERY_TYPE, b""),
    (QUERY_TYPE, b"name=%E2%80%AE&state=retired&role=admin&kind=none_fit&picks=x&rows=-1"),
    (FORM_TYPE, PART % (b"name", b"x") + FORM_END),
    (QUERY_TYPE, b"name=x&state=caf\xe9"),
    (QUERY_TYPE, b"name=caf%E9"),
    (QUERY_TYPE, b"name=%00"),
    (QUERY_TYPE, b"a=&" * 600),
    (FORM_TYPE, PART % (b"name", b"caf\xe9") + FORM_END),
    (FORM_TYPE, PART % (b"name", b"\x00") + FORM_END),
    (FORM_TYPE, b"no part at all"),
    (FORM_TYPE, PART % (b"file", b"x" * (SMALL_BODY + 1)) + FORM_END),  # an upload
)


class TestForms:
    """What browsers post: every form of every page, without looking at what is in it."""

    def test_nobody_posts_without_being_signed_in(self, committed_db: CommittedDatabase, world: World) -> None:
        wrong = []
        with client_of(committed_db, world, None) as client:
            client.cookies.clear()
            del client.headers["Authorization"]
            for path in (one for one in POSTS if one not in OF_STRANGERS):
                for kind, body in FORM_BODIES[:-1]:
                    answer = client.post(page_url(path, world), content=body, headers={"Content-Type": kind})
                    wrong += [] if answer.status_code == 401 else [f"{path} {body[:20]!r}: {answer.status_code}"]
        assert not wrong, "\n".join(wrong)

    @pytest.mark.parametrize("role", [Role.admin, Role.critic])
    def test_no_form_counts_without_the_token_of_its_session(
        self, committed_db: CommittedDatabase, world: World, role: Role
    ) -> None:
        wrong = []
        with client_of(committed_db, world, role) as client:
            del client.headers["Authorization"]
            for path in (one for one in POSTS if one not in OF_STRANGERS):
                for token in ({}, {"X-CSRF-Token": "x"}):
                    answer = client.post(page_url(path, world), data={"csrf_token": "é"}, headers=token)
                    refused = answer.status_code in (403, 404) and "umbrella" not in answer.text
                    wrong += [] if refused else [f"{path}: {answer.status_code}"]
        assert not wrong, "\n".join(wrong)

    @pytest.mark.parametrize("role", [Role.viewer, Role.critic, None])
    def test_who_may_not_post_is_told_so_whatever_they_send(
        self, committed_db: CommittedDatabase, world: World, role: Role | None
    ) -> None:
        wrong = []
        with client_of(committed_db, world, role) as client:
            del client.headers["Authorization"]
            with committed_db.sessions() as session:
                found = sessions.actor_for_cookie(session, client.cookies[SESSION_COOKIE])
                assert found is not None
            client.headers["X-CSRF-Token"] = found[1]
            for path in (one for one in POSTS if one not in OF_STRANGERS and not one.startswith(OF_ONESELF)):
                if role is Role.critic and path.startswith("/annotate"):
                    continue
                for kind, body in FORM_BODIES:
                    answer = client.post(page_url(path, world), content=body, headers={"Content-Type": kind})
                    expected = (403, 404, 413) if len(body) > SMALL_BODY else (403, 404)
                    if answer.status_code not in expected:
                        wrong.append(f"{path} {body[:20]!r}: {answer.status_code}")
        assert not wrong, "\n".join(wrong)


class TestWhatWouldUnblind:
    """Values, not fields, that told critics what they must not know."""

    def test_a_gold_prompt_looks_like_any_other(self, session: Session, project: Project, as_user: As) -> None:
        critic = factories.make_member(session, project)
        gold_verdict = hidden_gold(session, project, critic)
        work = factories.make_candidate_set(session, project, slots=2)
        work_verdict = factories.make_verdict(
            session, factories.make_assignment(session, work, factories.actor_of(critic))
        )
        session.commit()
        client = as_user(critic)
        for one in ("prompts", "assignments", "verdicts"):
            answers = [
                client.get(f"/api/v1/{one}/{getattr(verdict, name)}").json()
                for verdict in (gold_verdict, work_verdict)
                for name in ("id" if one == "verdicts" else f"{one[:-1]}_id",)
            ]
            told = [{key: value for key, value in fixed(answer).items() if key != "created_at"} for answer in answers]
            assert told[0] == told[1]

    def test_ones_own_records_have_no_gap_where_gold_was(self, committed_db: CommittedDatabase, world: World) -> None:
        with client_of(committed_db, world, Role.critic) as client:
            base = f"/api/v1/projects/{world.project.slug}"
            listed = client.get(f"{base}/verdicts?critic=me").json()["items"]
            given = {one["id"] for one in listed if one["current"]}
            assert {one["state"] for one in listed if one["current"]} == {"counted"}
            assert {one["id"] for one in rows_of(client.get(f"{base}/dataset?critic=me"))} == given
            table = pq.read_table(io.BytesIO(client.get(f"{base}/dataset?critic=me&as=parquet&images=path").content))
        with client_of(committed_db, world, Role.viewer) as client:
            counted = rows_of(client.get(f"{base}/dataset"))
            assert "gold" in {one["state"] for one in client.get(f"{base}/verdicts").json()["items"]}
        assert table.column("references").null_count == table.num_rows == len(given)
        assert len([one for one in counted if one["id"] in given]) == len(given) - 1

    def test_no_figure_moves_by_ones_own_verdict_alone(self, committed_db: CommittedDatabase, world: World) -> None:
        # Of a critic who judges alone, only the verdicts on gold prompts would leave it as it is.
        base = f"/api/v1/projects/{world.project.slug}"
        seen, figures, given = [], [], []
        with client_of(committed_db, world, Role.critic) as client:
            for _ in range(2):
                seen.append([rows_of(client.get(f"{base}{one}")) for one in ("/stats", "/rounds")])
                figures.append(re.findall(r'data-line-label="([^"]*)"', client.get(page_url(JUDGING, world)).text))
                claimed = client.get(f"/api/v1/assignments/{world.named['assignment_id']}").json()
                verdict = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]]}
                given.append(client.post(f"/api/v1/assignments/{claimed['id']}/verdict", json=verdict).is_success)
        assert given[0], "a figure could not move otherwise"
        assert seen[0] == seen[1]
        assert all("Training round" in label for [label] in figures)
        with committed_db.sessions() as session:
            session.execute(update(Round).values(state=RoundState.failed))
            critic = factories.actor_of(session.get_one(User, world.critic.id))
            project = session.get_one(Project, world.project.id)
            assert critic_day.load_glance(session, critic, project).fresh is None
            assert critic_day.load_glance(session, SYSTEM, project).fresh == rules.fresh_count(session, project) > 0

    @pytest.mark.parametrize(
        "query", ["format=sft", "format=kto", "format=csv", "version=1", "round=1", "snapshot=1", "critic=1"]
    )
    def test_a_dataset_is_refused_that_tells_what_became_of_verdicts(
        self, project: Project, critic: TestClient, query: str
    ) -> None:
        me = "" if "critic" in query else "&critic=me"
        answer = critic.get(f"/api/v1/projects/{project.slug}/dataset?{query}{me}")
        assert (answer.status_code, answer.json()["field"]) == (403, query.partition("=")[0])

    @pytest.mark.parametrize(("query", "status"), [("state=retired", 403), ("split=train", 200), ("q=beach", 200)])
    def test_no_filter_tells_what_the_answer_hides(
        self, project: Project, critic: TestClient, query: str, status: int
    ) -> None:
        assert critic.get(f"/api/v1/projects/{project.slug}/prompts?{query}").status_code == status

    def test_a_pair_can_be_judged_but_its_tally_not_seen(self, session: Session, project: Project, as_user: As) -> None:
        critic = as_user(factories.make_member(session, project))
        named = make_comparison(session, project)
        pair = critic.get(f"/api/v1/projects/{project.slug}/pairs/next").json()
        sent = critic.post(f"/api/v1/projects/{project.slug}/pairs/{pair['id']}/preference", json={"side": "left"})
        assert sent.status_code == 204
        urls = (f"comparisons/{named['comparison_id']}", f"projects/{project.slug}/comparisons")
        assert [critic.get(f"/api/v1/{url}").status_code for url in urls] == [403, 403]
        viewer = as_user(factories.make_member(session, project, Role.viewer))
        assert viewer.get(f"/api/v1/{urls[0]}").json()["done"] == 1


def fixed(answer: dict[str, Any]) -> dict[str, Any]:
    """What the values of an answer tell, without ids, texts and times that differ anyway."""
    return {
        key: fixed(value) if isinstance(value, dict) else len(value) if isinstance(value, list) else value
        for key, value in answer.items()
        if key not in ("id", "prompt", "candidate_set", "assignment", "candidates", "shown", "created_at", "expires_at")
        or (key == "prompt" and isinstance(value, dict))
    }


class TestTable:
    def test_the_page_shows_the_rights_of_each_role(self) -> None:
        page = (ROOT / "docs" / "security.md").read_text()
        for right in Right:
            marks = "".join(rf"{'yes' if right in RIGHTS[role] else ''} *\| " for role in RIGHTS).rstrip()
            assert re.search(rf"^\| `{right.value}` \| [^|]+\| {marks}$", page, re.MULTILINE), right
        header = " | ".join(role.value for role in RIGHTS)
        assert f"| right | what it allows | {header} |" in page

    def test_no_role_but_the_critics_judges_without_seeing(self) -> None:
        assert RIGHTS[Role.critic] == {Right.judges}
        assert all(RIGHTS[role] >= SEES for role in RIGHTS if role is not Role.critic)
        assert set(RIGHTS) == set(Role)

    def test_a_field_that_nobody_decided_on_is_for_those_who_see_everything(self) -> None:
        body = {"id": "1", "new": 1, "counts": {"rounds": 1, "new": 2}}
        assert shown_to(RIGHTS[Role.critic], AnswerShape.stats, body) == {"counts": {"rounds": 1}}
        assert shown_to(RIGHTS[Role.viewer], AnswerShape.stats, body) == body

    @pytest.mark.parametrize(
        ("shape", "model"),
        [
            (AnswerShape.policy, PolicyOut),
            (AnswerShape.project, ProjectOut),
            (AnswerShape.prompt, PromptOut),
            (AnswerShape.round, RoundOut),
        ],
    )
    def test_every_field_of_a_model_is_decided_on(self, shape: AnswerShape, model: type[Out]) -> None:
        assert set(model.model_fields) == {name for name in FIELDS[shape] if "." not in name}
