"""Exports of other annotation tools: their tasks, texts and judgements become prompts, sets and verdicts."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.errors import Forbidden
from app.models import Candidate, CandidateSet, ImportState, Pick, Project, Role, Split, User, Verdict, VerdictKind
from app.services.imports import imports
from app.services.imports.elsewhere import potato
from app.services.imports.elsewhere.converting import find_origin, record_rows
from app.services.imports.elsewhere.tasks import Origin, rows_of
from app.services.imports.layouts import Layout
from app.services.imports.tables.rows import TableRow
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.app.services.imports.importing import archive, make, problems, prompts_of, run, table
from tests.conftest import CommittedDatabase

Said = tuple[str, tuple[str, ...]]


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions() as session:
        made = factories.make_project(session)
        session.commit()
        return made


def document(*rows: dict[str, Any]) -> bytes:
    return json.dumps(list(rows)).encode()


def said(db: CommittedDatabase, project: Project) -> list[tuple[str, Said]]:
    """The verdicts by critic and kind, with the texts that were picked."""
    with db.sessions() as session:
        found = []
        for verdict in session.query(Verdict).filter_by(project_id=project.id).order_by(Verdict.id):
            email = session.get_one(User, verdict.critic_id).email
            picked = session.query(Candidate.text).join(Pick).filter(Pick.verdict_id == verdict.id)
            found.append((email, (verdict.kind.value, tuple(text for (text,) in picked.order_by(Candidate.position)))))
        return found


def texts(db: CommittedDatabase, project: Project) -> list[list[str]]:
    """The texts of each candidate set."""
    with db.sessions() as session:
        return [
            [one.text for one in factories.candidates_of(session, found)]
            for found in session.query(CandidateSet).filter_by(project_id=project.id).order_by(CandidateSet.id)
        ]


def reasons(db: CommittedDatabase, found: Any) -> list[tuple[int, str | None, str]]:
    return sorted((one.line, one.field, one.reason) for one in problems(db, found))


def annotation(number: int, *results: dict[str, Any], by: Any = 7, **more: Any) -> dict[str, Any]:
    """An annotation of Label Studio."""
    return {
        "id": number,
        "completed_by": by,
        "result": list(results),
        "was_cancelled": False,
        "lead_time": 4.5,
        "created_at": "2024-03-09T22:16:08.728353Z",
        **more,
    }


def result(kind: str, value: Any, name: str = "choice") -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "image", "type": kind, "value": value}


class TestLabelStudio:
    def test_pairs_of_texts(self, committed_db: CommittedDatabase, project: Project) -> None:
        data = {
            "image": "/data/upload/3/1a2b-beach.png",
            "question": "Is it sunny?",
            "answer": "yes",
            "text1": "The sky is blue.",
            "text2": "It is night.",
            "source": "phone",
        }
        left, right = result("pairwise", {"selected": "left"}), result("pairwise", {"selected": "right"})
        note = result("textarea", {"text": ["clear"]})
        box = result("rectanglelabels", {"x": 1})
        rows = document(
            {
                "id": 11,
                "data": data,
                "annotations": [annotation(1, left, note, box), annotation(2, right, by={"id": 9, "email": "a@b.c"})],
                "predictions": [{"result": []}],
            },
            {"id": 12, "data": data, "annotations": [annotation(3, was_cancelled=True)], "predictions": []},
            {"id": 13, "data": data, "annotations": []},
            {"id": 14, "data": {**data, "image": "gone.png"}, "annotations": [annotation(4, left)]},
        )
        packed = archive({"export.json": rows, "images/1a2b-beach.png": factories.image_bytes()})
        found = run(committed_db, project, packed, "export.zip")
        assert (found.state, found.plan["layout"]) == (ImportState.succeeded, "label-studio")
        assert (found.added, found.rejected) == (4, 2)
        assert reasons(committed_db, found) == [
            (
                1,
                "annotations",
                "annotation 1: a result of the type rectanglelabels has no place. "
                "task 11: 1 predictions have no place.",
            ),
            (4, "images", "There is no file 'gone.png' in the zip or folder."),
        ]
        prompts = sorted(prompts_of(committed_db, project), key=lambda one: one.external_id or "")
        assert [(one.external_id, one.question, one.answer) for one in prompts] == [
            ("11", "Is it sunny?", "yes"),
            ("12", "Is it sunny?", "yes"),
            ("13", "Is it sunny?", "yes"),
        ]
        assert prompts[0].extra == {"source": "phone"}
        assert texts(committed_db, project) == [["The sky is blue.", "It is night."]] * 3
        verdicts = said(committed_db, project)
        assert [one for _, one in verdicts] == [
            ("picked", ("The sky is blue.",)),
            ("picked", ("It is night.",)),
            ("skipped", ()),
        ]
        assert verdicts[0][0] == verdicts[2][0] != verdicts[1][0]
        with committed_db.sessions() as session:
            first = session.query(Verdict).filter_by(project_id=project.id).order_by(Verdict.id).first()
            assert first is not None
            assert (first.comment, first.seconds, first.created_at.year) == ("clear", 4.5, 2024)

        again = run(committed_db, project, packed, "export.zip")
        assert (again.added, again.unchanged) == (0, 4)

    def test_choices_name_texts_or_are_judged_themselves(
        self, committed_db: CommittedDatabase, project: Project
    ) -> None:
        with committed_db.sessions() as session:
            sha256 = factories.make_image(session).sha256
            session.commit()

        def task(number: int, data: dict[str, Any], *choices: str) -> dict[str, Any]:
            values = [annotation(number, result("choices", {"choices": list(choices)}))]
            return {"id": number, "data": {"image": sha256, **data}, "annotations": values}

        replies = {"question": "Why?", "response_a": "Because.", "response_b": "So."}
        rows = (
            task(1, replies, "Response B"),
            task(2, replies, "neither"),
            task(3, replies, "tie"),
            task(4, {"rationales": ["One.", "Two.", "Three."]}, "Two.", "3"),
            task(5, {}, "dog"),
            task(6, {}, "cat", "dog"),
            {"id": 7, "data": {"image": sha256, **replies}, "annotations": [annotation(7)]},
        )
        found = run(committed_db, project, document(*rows), "export.json")
        assert [one for _, one in said(committed_db, project)] == [
            ("picked", ("So.",)),
            ("none_fit", ()),
            ("picked", ("Two.", "Three.")),
            ("picked", ("dog",)),
            ("picked", ("cat", "dog")),
        ]
        assert reasons(committed_db, found) == [
            (3, "annotations", "annotation 3: 'tie' is none of the texts of the task."),
            (7, "annotations", "annotation 7: it picks nothing, and has no place."),
        ]
        labels = sorted(["Response B", "neither", "tie", "Two.", "3", "dog", "cat"])
        assert labels in texts(committed_db, project)
        assert "Which of these fits the image?" in {one.question for one in prompts_of(committed_db, project)}

    def test_a_pair_of_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        with committed_db.sessions() as session:
            first, second = (factories.make_image(session).sha256 for _ in range(2))
            session.commit()
        pair = annotation(1, result("pairwise", {"selected": "right"}))
        data = {"img": first, "image": second}
        found = run(committed_db, project, document({"id": 1, "data": data, "annotations": [pair]}), "pairs.json")
        assert found.rejected == 0
        assert [one for _, one in said(committed_db, project)] == [("picked", ("The second image.",))]
        assert prompts_of(committed_db, project)[0].question == "Which of the two images is better?"


class TestArgilla:
    def test_rankings(self, committed_db: CommittedDatabase, project: Project) -> None:
        picture = "data:image/png;base64," + base64.b64encode(factories.image_bytes()).decode()
        fields = {"image": picture, "prompt": "Is it sunny?", "response-1": "Blue sky.", "response-2": "Night."}
        ranked = [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}]
        tied = [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 1}]
        rows = document(
            {
                "id": "r1",
                "fields": fields,
                "metadata": {"batch": 2},
                "responses": {
                    "ranking": [
                        {"value": ranked, "user_id": "u1"},
                        {"value": ["response-1", "response-2"], "user_id": "u2"},
                        {"value": tied, "user_id": "u3"},
                    ],
                    "note": [{"value": "easy", "user_id": "u1"}],
                    "score": [{"value": 4, "user_id": "u2"}],
                },
                "suggestions": {"ranking": {"value": ranked, "score": None, "agent": "m"}},
                "vectors": {},
            },
            {"id": "r2", "fields": fields, "metadata": {}, "responses": {}, "suggestions": {}, "vectors": {}},
        )
        found = run(committed_db, project, rows, "records.json")
        assert found.plan["layout"] == Layout.argilla
        assert reasons(committed_db, found) == [
            (
                1,
                "responses",
                "record r1: the answer to 'score' has no place. record r1: 1 suggestions have no place.",
            ),
        ]
        assert [one for _, one in said(committed_db, project)] == [
            ("picked", ("Night.",)),
            ("picked", ("Blue sky.",)),
            ("picked", ("Blue sky.", "Night.")),
        ]
        prompts = sorted(prompts_of(committed_db, project), key=lambda one: one.external_id or "")
        assert [(one.external_id, one.question, one.extra) for one in prompts] == [
            ("r1", "Is it sunny?", {"batch": 2}),
            ("r2", "Is it sunny?", {}),
        ]
        assert texts(committed_db, project)[0] == ["Blue sky.", "Night."]

    def test_an_order_below_the_first_rank_is_reported(self, committed_db: CommittedDatabase, project: Project) -> None:
        picture = "data:image/png;base64," + base64.b64encode(factories.image_bytes()).decode()
        fields = {"image": picture, "text-1": "Blue sky.", "text-2": "Night.", "text-3": "Rain."}

        def ranked(*ranks: int) -> list[dict[str, Any]]:
            return [{"value": f"text-{number}", "rank": rank} for number, rank in enumerate(ranks, start=1)]

        both = [{"value": ranked(2, 1, 3), "user_id": "u1"}, {"value": ranked(1, 2, 3), "user_id": "u2"}]
        rows = document(
            {"id": "r1", "fields": fields, "responses": {"order": both}},
            {"id": "r2", "fields": fields, "responses": {"order": [{"value": ranked(2, 1, 2), "user_id": "u1"}]}},
        )
        found = run(committed_db, project, rows, "records.json")
        below = "record r1: only the first rank in 'order' counts; the order below it has no place."
        assert reasons(committed_db, found) == [(1, "responses", below)]
        assert [one for _, one in said(committed_db, project)] == [
            ("picked", ("Night.",)),
            ("picked", ("Blue sky.",)),
            ("picked", ("Night.",)),
        ]

    def test_labels_in_a_ranking_and_broken_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        with committed_db.sessions() as session:
            sha256 = factories.make_image(session).sha256
            session.commit()
        ranked = [{"value": "dog", "rank": 2}, {"value": "cat", "rank": 1}]
        response = {"ranking": [{"value": ranked, "user_id": "u1"}]}
        rows = document(
            {"id": "a", "fields": {"image": sha256}, "responses": response},
            {"id": "b", "fields": {"image": "data:image/png;base64,%%%"}, "responses": response},
            {"other": 1},
        )
        found = run(committed_db, project, rows, "records.json", split=Split.test)
        assert [one for _, one in said(committed_db, project)] == [("picked", ("cat",))]
        assert [(line, name) for line, name, _ in reasons(committed_db, found)] == [(2, "images"), (3, None)]
        assert reasons(committed_db, found)[1][2] == "This is no record or task of Argilla, as the first one is."
        assert prompts_of(committed_db, project)[0].split is Split.test


class TestPotato:
    def test_items_and_judgements_in_a_zip(self, committed_db: CommittedDatabase, project: Project) -> None:
        def line(item: str, person: str, **labels: Any) -> dict[str, Any]:
            return {"instance_id": item, "user_id": person, "labels": labels, "spans": {}, "links": {}}

        items = [
            {"id": "1", "image": "a.png", "question": "Why?", "responses": ["Because.", "So."], "topic": "beach"},
            {"id": "2", "left": "a.png", "right": "b.png", "question": "Which?"},
            {"id": "3", "image": "a.png", "responses": ["Yes.", "No."]},
        ]
        lines = [
            line("1", "ann", better={"selection": "B"}, why={"text_box": "short"}),
            line("1", "bob", better={"selection": "tie"}),
            line("1", "eve", why={"text_box": "no idea"}),
            line("9", "ann", better={"selection": "A"}),
            line("2", "ann", scale={"scale_value": "-2"}, stars={"4": "true"}),
            line("2", "bob", scale={"scale_value": "1"}) | {"spans": {"words": [{"start": 0}]}},
        ]
        files = {"data/items.jsonl": table(*items), "export/annotations.jsonl": table(*lines)}
        pictures = {f"data/{name}.png": factories.image_bytes() for name in "ab"}
        found = run(committed_db, project, archive({**files, **pictures}), "potato.zip")
        assert found.plan["layout"] == "potato"
        assert (found.added, found.rejected) == (4, 3)
        assert reasons(committed_db, found) == [
            (
                1,
                "judgements",
                "item 1, bob: 'better' has no place. item 1, eve: it picks nothing, and has no place.",
            ),
            (2, "judgements", "item 2, ann: 'stars' has no place. item 2, bob: spans have no place."),
            (4, "judgements", "1 judgement is on an item that the data file does not have: '9'."),
        ]
        assert [one for _, one in said(committed_db, project)] == [
            ("picked", ("So.",)),
            ("picked", ("The first image.",)),
            ("picked", ("The second image.",)),
        ]
        prompts = sorted(prompts_of(committed_db, project), key=lambda one: one.external_id or "")
        assert [(one.question, one.extra) for one in prompts] == [
            ("Why?", {"topic": "beach"}),
            ("Which?", {}),
            ("Which of these fits the image?", {}),
        ]
        with committed_db.sessions() as session:
            first = session.query(Verdict).filter_by(project_id=project.id).order_by(Verdict.id).first()
            assert first is not None
            assert first.comment == "short"


def test_the_command_finds_the_images_and_names_the_tool(
    committed_db: CommittedDatabase, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "9-dog.jpg").write_bytes(factories.image_bytes())
    data = {"image": "/data/local-files/?d=pictures/9-dog.jpg", "text1": "A dog.", "text2": "A cat."}
    pair = annotation(1, result("pairwise", {"selected": "left"}))
    export = tmp_path / "export.json"
    export.write_bytes(document({"id": 1, "data": data, "annotations": [pair]}))
    assert main.main(["import", project.slug, str(export)]) == 0, capsys.readouterr().err
    assert "The file was exported by Label Studio" in capsys.readouterr().out
    assert [one for _, one in said(committed_db, project)] == [("picked", ("A dog.",))]


def test_only_admins_bring_verdicts_of_others(committed_db: CommittedDatabase, project: Project) -> None:
    pair = annotation(1, result("pairwise", {"selected": "left"}))
    rows = document({"id": 1, "data": {"image": "a.png", "text1": "A", "text2": "B"}, "annotations": [pair]})
    with committed_db.sessions() as session:
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        with pytest.raises(Forbidden):
            imports.create_import(session, reviewer, project, filename="a.json", source=io.BytesIO(rows))
        prepared = make(committed_db, project, rows, "a.json", draft=True)
        with pytest.raises(Forbidden):
            imports.start_import(session, reviewer, prepared)


def test_a_draft_shows_what_is_missing(committed_db: CommittedDatabase, project: Project) -> None:
    pair = annotation(1, result("pairwise", {"selected": "left"}))
    data = {"image": "a.png", "text1": "A", "text2": "B"}
    import_id = make(
        committed_db, project, document({"id": 1, "data": data, "annotations": [pair]}), "a.json", draft=True
    )
    with committed_db.sessions() as session:
        plan, [row] = imports.preview_rows(imports.get_import(session, SYSTEM, import_id))
    assert plan.layout is Layout.label_studio
    assert row.problem.startswith("There is no image 'a.png'")
    assert VerdictKind.picked.value == row.values["kind"]


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2.5,
    "",
    "left",
    [],
    [None],
    [[]],
    {},
    {"value": 3},
    {"choices": {"a": 1}},
    "\x00",
    "x" * 9000,
)


def test_no_odd_value_ends_the_reading() -> None:
    read = 0
    for odd in ODD:
        tasks = (
            {"id": odd, "data": {"image": odd, "text1": odd, "text2": "b", "question": odd, "rationales": odd}},
            {"data": {"image": "a.png", "text1": "a", "text2": "b"}, "annotations": [odd, {"id": odd, "result": odd}]},
            {"data": {}, "annotations": [annotation(1, result("choices", odd)), annotation(2, {"value": odd}, by=odd)]},
            {"data": {"image": "a.png"}, "annotations": [annotation(1, result("pairwise", {"selected": odd}))]},
            {"id": 1, "fields": {"image": odd, "a": odd, "b": "x"}, "responses": {"q": odd, "r": [odd]}},
            {"fields": {"a": "1", "b": "2"}, "responses": {"q": [{"value": odd, "user_id": odd, "status": odd}]}},
            {"fields": {"a": "1", "b": "2"}, "responses": {"q": [{"value": [odd, {"value": odd, "rank": odd}]}]}},
            {"fields": {"image": [odd, odd]}, "responses": {}, "metadata": odd, "suggestions": odd, "vectors": odd},
        )
        for values in ({"annotations": [], **one} if "data" in one else one for one in tasks):
            origin = find_origin(values)
            assert origin is not None
            line = {
                "instance_id": "1",
                "user_id": odd,
                "labels": {"a": odd, "b": {"selection": odd, "scale_value": odd}},
            }
            judged = potato.item_rows(
                iter([TableRow(1, {"id": "1", "text1": odd, "text2": "b"})]), iter([TableRow(1, line)])
            )
            for one in judged:
                assert one is not None
                assert isinstance(one.values, dict)
                assert list(rows_of(potato.read(one.values, 1), 1, Origin.potato))

            def rows(values: dict[str, Any] = values) -> Generator[TableRow | None, None, None]:
                yield TableRow(1, values)

            read += sum(1 for _ in record_rows(origin, rows))
    assert read >= len(ODD) * 8
