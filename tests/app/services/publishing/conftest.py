"""A project that can be published, and a Hub that records what would be sent to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.rounds import snapshots
from tests import factories
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase

COMMIT = "5fbcdcd0" * 5
METRICS = {"means": {"sampled_rouge_l": 0.5, "answer_accuracy": 0.75}, "parent": {"means": {"sampled_rouge_l": 0.25}}}


@pytest.fixture
def slug(committed_db: CommittedDatabase, tmp_path: Path) -> str:
    """A judged project with a snapshot, and a version 1 with an adapter, made by round 1 on the base `owner/base`."""
    adapter = tmp_path / "stored" / "deeper"
    adapter.mkdir(parents=True)
    (adapter.parent / "adapter_config.json").write_text("{}")
    (adapter / "weights.bin").write_bytes(b"w" * 3_000_000)
    with committed_db.sessions() as session:
        project, _ = make_judged(session)
        frozen = snapshots.freeze(session, SYSTEM, project, name="first # of two")
        key = get_store().put_folder(adapter.parent)
        base = factories.make_version(session, project, number=7, base_model=f"owner/base@{COMMIT}")
        version = factories.make_version(
            session, project, number=8, base_model=f"owner/base@{COMMIT}", parent=base, adapter=key, metrics=METRICS
        )
        version.round_id = factories.make_round(session, project, snapshot=frozen).id
        session.commit()
        return project.slug


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Records what would be sent to the Hub."""
    sent: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str) -> None:
            assert token == "hf_secret"

        def create_repo(self, name: str, **options: Any) -> str:
            sent.append(("create", {"name": name, **options}))
            return f"https://hub.example/{name}"

        def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
            files = {path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()}
            sent.append(("upload", {"files": files, **options}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return sent


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(), base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        yield client


def refusal(error: Exception) -> Callable[..., None]:
    """A call of the Hub that ends in an error."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse
