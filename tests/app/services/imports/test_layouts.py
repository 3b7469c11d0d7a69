"""What columns mean, by their names."""

from __future__ import annotations

import io

import pytest
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import ImportState, Split
from app.services.imports import imports
from app.services.imports.layouts import Target, guess_target
from app.services.kernel.actors import SYSTEM
from tests import factories


class TestGuessTarget:
    @pytest.mark.parametrize(
        ("name", "target"),
        [
            ("Question", Target.question),
            ("anwser", Target.answer),
            ("qestion", Target.question),
            ("explanatoin_2", Target.reference),
            ("Frage", Target.question),
            ("Antworten", Target.answer),
            ("Erklärung 3", Target.reference),
            ("Bild", Target.image),
            ("réponse", Target.answer),
            ("explication", Target.reference),
            ("imagen", Target.image),
            ("pregunta", Target.question),
            ("explicación", Target.reference),
            ("photo", Target.image),
            ("img_path", Target.image),
            ("FRAGE (DE)", Target.question),
            ("antwort_text", Target.answer),
            ("gold answer", Target.answer),
            ("fichier_image", Target.image),
            ("justificación 2", Target.reference),
            ("Kennung", Target.external_id),
            ("image_text_width", None),
            ("file path", None),
            ("question_type", None),
            ("answer_confidence", None),
            ("licence", None),
            ("caption", None),
            ("width", None),
            ("", None),
            ("7", None),
        ],
    )
    def test_names(self, name: str, target: Target | None) -> None:
        assert guess_target(name) is target


class TestImpossibleImports:
    def test_cannot_be_started(self, session: Session) -> None:
        project = factories.make_project(session)
        source = io.BytesIO(b"scan,caption\n1.png,q\n")
        made = imports.create_import(session, SYSTEM, project, filename="x.csv", source=source, draft=True)
        for columns, word in (({}, "names the images"), ({"scan": "image"}, "with the question")):
            imports.change_plan(session, SYSTEM, made.id, columns=columns, split=Split.train, question="")
            with pytest.raises(Invalid, match=word):
                imports.start_import(session, SYSTEM, made.id)
            assert made.state is ImportState.draft
        imports.change_plan(session, SYSTEM, made.id, columns={}, split=Split.train, question="What is it?")
        assert imports.start_import(session, SYSTEM, made.id).state is ImportState.queued
