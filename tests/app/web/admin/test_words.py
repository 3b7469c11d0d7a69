"""The words of the pages: every page that people other than critics read, in a project with something of every kind."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import errors
from app.models import (
    AuditEvent,
    CandidateSet,
    Erasure,
    ErasureKind,
    ErasureState,
    Evaluation,
    Import,
    ModelVersion,
    Project,
    PromptImage,
    PromptState,
    RoundState,
    RoundTrigger,
    User,
    Verdict,
)
from app.services.imports import imports
from app.services.kernel.actors import SYSTEM
from app.services.quality import gold
from app.services.quality.gold import GoldIn
from app.services.rounds import comparisons
from app.settings import ROOT
from app.web.rendering import MESSAGES
from app.web.words import ACTION_WORDS, SUBJECT_WORDS
from bench.addresses import ADMIN
from tests import factories
from tests.app.services.feedback import start_prepared
from tests.app.services.quality.test_reviews import judged
from tests.app.web.conftest import Browser

# Words of the code that pages say otherwise, each with the page's word: see docs/glossary.md.
BANNED = {
    r"candidates?": "explanation",
    r"rationales?": "explanation",
    r"gold": "check question",
    r"held(?!-out)": "on hold",
    r"retired?": "archived",
    r"lineage": "versions",
    r"loop": "Overview",
    r"deeds?": "activity",
    r"pool": "prompts kept ready",
    r"claims?": "reservation",
    r"turned down": "rejected",
    r"VQA-only": "answer-only",
    r"by itself": "automatically",
    r"(?:is|are|was|were) no (?:JSON|zip|day|number|web address)": "is not a ...",
    r"waits for": "waiting for",
    r"taken in": "imported",
    r"let in": "re-enable",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
# What people or the REST interface wrote: it is shown as it is.
QUOTED = {"mono", "own-words", "as-typed"}
QUOTING = {"code", "pre", "kbd", "script", "style", "textarea"}
SPOKEN = {"title", "aria-label", "placeholder", "alt", "data-confirm"}
VOID = {"br", "hr", "img", "input", "link", "meta", "path", "rect", "circle"}


class Words(HTMLParser):
    """The texts of a page that are its own: what is seen, and what is read aloud, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._quoted: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID and (self._quoted or tag in QUOTING or QUOTED & set(given.get("class", "").split())):
            self._quoted.append(tag)
        if not self._quoted:
            self.found += [value for name, value in given.items() if name in SPOKEN]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content, as in SVG."""

    def handle_endtag(self, tag: str) -> None:
        if self._quoted and tag not in VOID:
            self._quoted.pop()

    def handle_data(self, data: str) -> None:
        if not self._quoted and data.strip():
            self.found.append(" ".join(data.split()))


def banned_in(html: str) -> list[str]:
    """The texts of a page that contain a banned word."""
    words = Words()
    words.feed(html)
    return [text for text in words.found if PATTERN.search(text)]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>3 candidates are ready</p>", ["3 candidates are ready"]),
        ('<a title="On gold prompts">x</a>', ["On gold prompts"]),
        ("<p>Held-out explanations</p><td class=mono>gold_share</td><code>candidates</code>", []),
        ('<span class="as-typed">a gold <b>ring</b></span><p>held</p>', ["held"]),
    ],
)
def test_banned_words_are_found_unless_they_are_quoted(html: str, expected: list[str]) -> None:
    assert banned_in(html) == expected


@pytest.fixture
def offered(session: Session, project: Project, admin: User) -> CandidateSet:
    """A set of explanations on which two critics disagreed, in a project with something of every kind."""
    offered = factories.make_candidate_set(session, project, slots=2)
    for place in (0, 1):
        judged(session, project, offered, place)
    for state in (PromptState.held, PromptState.retired, PromptState.judged):
        factories.make_prompt(session, project).state = state
    known = factories.make_prompt(session, project, question="What is it?")
    factories.make_candidate_set(session, project, prompt=known, texts=("a", "b"))
    texts = [{"text": "it fits", "fits": True}, {"text": "it does not", "fits": False}]
    gold.add_gold(session, SYSTEM, project, GoldIn.model_validate({"prompt": str(known.id), "candidates": texts}))
    old = session.get_one(ModelVersion, project.active_version_id)
    new = factories.make_version(session, project, number=1, parent=old)
    for version, texts_of in ((old, ("a boat", "a ship")), (new, ("a red boat", "a raft"))):
        part = {"rationales": [[text] for text in texts_of], "rouge_l": [0.5, 0.2]}
        ids = [str(offered.prompt_id), str(known.id)]
        scores = {"prompts": ids, "gold": {"sampled": part, "greedy": part}}
        factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=scores))
    comparisons.start(session, SYSTEM, project, old=old, new=new)
    done = start_prepared(session, project)
    done.state, done.trigger = RoundState.succeeded, RoundTrigger.auto
    done.version_id, done.decision = new.id, {"activate": False, "reason": "Too few to tell (2; at least 30)."}
    done.metrics = {"left_out": [{"prompt": known.id, "role": "guard", "reason": "it is too wide"}]}
    running = factories.make_round(session, project, number=2, state=RoundState.training)
    running.snapshot_id = done.snapshot_id
    source = io.BytesIO(b'{"images": ["1.png"], "question": "What?"}\n')
    imports.create_import(session, SYSTEM, project, filename="a.jsonl", source=source, draft=True)
    factories.add(session, Erasure(kind=ErasureKind.project, subject="1", name="old", state=ErasureState.done))
    for action in ACTION_WORDS:
        subject = f"{action.partition('.')[0]}:1"
        factories.add(session, AuditEvent(project_id=project.id, action=action, subject=subject, data={}))
    session.flush()
    return offered


def addresses(session: Session, offered: CandidateSet) -> Iterator[str]:
    """Every address of an admin that needs nothing but what is here, in this project."""
    prompt = offered.prompt_id
    image = session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id == prompt)).first()
    critic = session.scalars(select(Verdict.critic_id)).first()
    file = session.scalars(select(Import.id)).one()
    names: dict[str, object] = {"p": prompt, "q": prompt, "c": critic, "d": critic, "number": 1, "import": file}
    names |= {"v": 10**9, "image": image}
    for address in (*ADMIN, "/admin/projects/scenes/rounds/2", "/admin/projects/scenes/review?kind=sent_back"):
        if "{cursor}" not in address and "matches" not in address:
            yield address.replace("/bench", "/scenes").replace("=bench", "=scenes").format(**names)


def test_no_page_has_a_word_of_the_code(session: Session, browser: Browser, offered: CandidateSet) -> None:
    found: dict[str, list[str]] = {}
    read = set()
    for address in addresses(session, offered):
        answer = browser.get(address)
        assert answer.status_code == 200, address
        if answer.headers["content-type"].startswith("text/html"):
            read.add(address.partition("?")[0])
            found[address] = banned_in(answer.text)
    assert {address: texts for address, texts in found.items() if texts} == {}
    assert len(read) > 35


def test_no_message_has_a_word_of_the_code() -> None:
    said = [*MESSAGES.values(), *ACTION_WORDS.values(), *SUBJECT_WORDS.values()]
    assert [text for text in said if PATTERN.search(text)] == []


def audit_actions() -> Iterator[str]:
    """The actions that the code records, as far as they are written out."""
    for file in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "audit.record":
                constants = (one.value for one in ast.walk(node.args[2]) if isinstance(one, ast.Constant))
                yield from (value for value in constants if isinstance(value, str))


def test_every_action_of_the_audit_log_has_words() -> None:
    recorded = set(audit_actions())
    assert len(recorded) > 30
    known = [*ACTION_WORDS, *(f"{action} " for action in ACTION_WORDS)]
    assert {one for one in recorded if not any(one in action for action in known)} == set()
    assert {action.partition(".")[0] for action in ACTION_WORDS} <= set(SUBJECT_WORDS)


# Errors that name a field of the REST interface, or a value of one, in the words of the interface.
OF_REST = re.compile(r"^[a-z_{}.\[\]]+[: ]|'(?:retired|held|candidates)'|\bnone_fit\b|^This assignment is")


def error_texts() -> Iterator[tuple[Path, str]]:
    """The sentences of the errors that people can do something about, without the values in them."""
    names = {name for name, one in vars(errors).items() if isinstance(one, type)}
    for file in sorted((ROOT / "app" / "services").rglob("*.py")) + sorted(
        (ROOT / "app" / "web" / "admin").rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names and node.args:
                first = node.args[0]
                if isinstance(first, ast.Call) and ast.unparse(first.func) == "_":
                    first = first.args[0]
                parts = first.values if isinstance(first, ast.JoinedStr) else [first]
                text = "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in parts)
                yield file, re.sub(r"%\(\w+\)s", "{}", text)


def test_no_error_has_a_word_of_the_code() -> None:
    texts = list(error_texts())
    assert len(texts) > 150
    assert [(file.name, text) for file, text in texts if PATTERN.search(text) and not OF_REST.search(text)] == []
