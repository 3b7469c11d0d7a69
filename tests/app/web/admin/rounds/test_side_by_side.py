"""Two versions side by side, and the download of an adapter."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.models import Evaluation, ModelVersion, Project, User
from app.services.kernel.store import get_store
from tests import factories
from tests.app.web.conftest import Browser


class TestCompare:
    def test_sorted_by_difference_with_a_list_for_each_kind(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        texts = {"same": "it is red", "better": "a red boat floats", "worse": "no boat"}
        prompts = {name: factories.make_prompt(session, project, question=f"{name}?") for name in texts}
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=1, parent=old)
        for version, scores in ((old, (0.5, 0.2, 0.9)), (new, (0.5, 0.7, 0.1))):
            part = {"rationales": [[text] for text in texts.values()], "rouge_l": list(scores)}
            kept = {"prompts": [str(one.id) for one in prompts.values()], "gold": {"sampled": part, "greedy": part}}
            factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
        page = browser.get("/admin/projects/scenes/compare").text
        assert "Version 0 against version 1" in page
        assert "too few to tell (3; at least 30)" in page
        assert "95 % interval" not in page
        assert [page.index(f">{name}?<") for name in ("better", "same", "worse")] == sorted(
            page.index(f">{name}?<") for name in texts
        )
        worse = browser.get("/admin/projects/scenes/compare?old=0&new=1&show=worse").text
        assert ">worse?<" in worse
        assert ">better?<" not in worse
        assert browser.get("/admin/projects/scenes/compare?old=7").status_code == 404

    def test_nothing_scored_yet(self, browser: Browser, admin: User) -> None:
        assert "Nothing to compare" in browser.get("/admin/projects/scenes/compare").text

    def test_the_adapter_is_downloaded(self, browser: Browser, session: Session, project: Project, admin: User) -> None:
        key = get_store().put_bytes(b"weights")
        version = factories.make_version(session, project, number=1, adapter=key)
        assert f"/api/v1/versions/{version.id}/adapter" in browser.get("/admin/projects/scenes/versions").text
        response = browser.get(f"/api/v1/versions/{version.id}/adapter")
        assert response.content == b"weights"
        assert 'filename="scenes-v1.tar"' in response.headers["content-disposition"]
        assert browser.get(f"/api/v1/versions/{project.active_version_id}/adapter").status_code == 404
