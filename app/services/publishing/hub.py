"""Uploading a repository to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2

from app.errors import Conflict, Invalid
from app.models import RepositoryKind
from illume.phrases import _

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TYPES = {RepositoryKind.dataset: "dataset", RepositoryKind.adapter: "model"}


def check_name(name: str) -> str:
    """The name of a repository, OWNER/NAME. Raises `Invalid`."""
    if not REPOSITORY.fullmatch(name):
        raise Invalid(
            _("repo: '%(name)s' is no name of a repository: write OWNER/NAME.", name=name[:100]), field="repo"
        )
    return name


def find_token() -> str:
    """The token of the person who publishes: HF_TOKEN, or that of `hf auth login`. Raises `Conflict` without one."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise Conflict(_("There is no token for the Hub: set HF_TOKEN, or sign in with `hf auth login`."))
    return token


def has_token() -> bool:
    """Whether this machine has a token for the Hub."""
    from huggingface_hub import get_token

    return bool(get_token())


def upload(folder: Path, kind: RepositoryKind, name: str, *, public: bool, message: str) -> str:
    """Upload a folder as one commit to a repository, which is made if it does not exist. Returns its address.

    A repository that exists stays as public or private as it is. Raises `Conflict` with what the Hub says.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = HfApi(token=find_token())
    try:
        made = api.create_repo(name, repo_type=TYPES[kind], private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=TYPES[kind], folder_path=folder, commit_message=message)
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Conflict(
            _("The %(kind)s was not uploaded to %(name)s: %(first)s", kind=kind, name=name, first=first[:300])
        ) from error
    return str(made)
