"""`illume publish`: write or upload repositories for the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from app.cli.terminal import FilePath, Say, data_dir_option, prepared, say
from app.db.sessions import session_scope
from app.models import RepositoryKind
from app.processes.connect import Refused
from app.services.kernel.actors import SYSTEM
from app.services.projects.projects import get_project
from app.services.publishing import hub, repositories, uploading
from app.services.publishing.repositories import Repository
from app.services.publishing.terms import Terms, parse_terms
from app.services.rounds import snapshots, versions


@dataclass(frozen=True, slots=True)
class Publication:
    """What `illume publish` writes. Without numbers it is the newest snapshot, and the active version."""

    kinds: tuple[RepositoryKind, ...]
    terms: Terms
    snapshot: int | None = None
    version: int | None = None


@click.command("publish")
@click.argument("slug", help="The project's slug.")
@click.option("--dataset", is_flag=True, help="A snapshot as a dataset: Parquet with images, and its card.")
@click.option("--adapter", is_flag=True, help="A version's adapter as a model, with its card.")
@click.option("--out", type=FilePath, metavar="DIR", help="Only write DIR/dataset and DIR/adapter.")
@click.option("--repo", metavar="OWNER/NAME", help="Upload to this repository, with the token of HF_TOKEN.")
@click.option("--public", is_flag=True, help="A repository that --repo makes can be seen by everybody.")
@click.option("--snapshot", type=int, metavar="N", help="The snapshot's number.  [default: the newest]")
@click.option("--version", type=int, metavar="N", help="The version's number.  [default: the active one]")
@click.option("--license", "licence", default="", metavar="ID", help="The licence, such as cc-by-4.0.")
@click.option("--language", "languages", multiple=True, metavar="TAG", help="A language of the texts, such as en.")
@data_dir_option
def publish_command(
    slug: str,
    *,
    dataset: bool,
    adapter: bool,
    out: Path | None,
    repo: str | None,
    public: bool,
    snapshot: int | None,
    version: int | None,
    licence: str,
    languages: Sequence[str],
) -> int:
    """Write or upload a repository for the Hugging Face Hub.

    A snapshot becomes a dataset, the adapter of a version a model.
    """
    chosen = ((RepositoryKind.dataset, dataset), (RepositoryKind.adapter, adapter))
    kinds = tuple(kind for kind, wanted in chosen if wanted)
    if not kinds:
        raise click.UsageError("Say what to publish: --dataset, --adapter or both.")
    if (out is None) == (repo is None):
        raise click.UsageError("Say where to: --out DIR for a folder only, or --repo OWNER/NAME to upload.")
    publication = Publication(kinds, parse_terms(licence, languages), snapshot, version)
    if repo is not None:
        hub.check_name(repo)
        hub.find_token()
    with prepared():
        if out is not None:
            write(slug, publication, out, say=say)
        else:
            upload(slug, publication, str(repo), public=public, say=say)
    return 0


def write(slug: str, publication: Publication, out: Path, *, say: Say) -> None:
    """Write the repositories to folders below `out`."""
    for kind in publication.kinds:
        repository, target = make(slug, publication, kind), out / kind
        try:
            size = repositories.write_folder(repository, target)
        except OSError as error:
            raise Refused(f"{target} could not be written: {error.strerror or error}.", code=2) from error
        say(f"Wrote the {kind} of {repository.made_from} to {target} ({size / 1e6:,.1f} MB).")


def upload(slug: str, publication: Publication, repo: str, *, public: bool, say: Say) -> None:
    """Upload the repositories. A dataset and a model may have the same name on the Hub."""
    for kind in publication.kinds:
        repository = make(slug, publication, kind)
        address = uploading.upload(repository, slug, repo, public=public)
        say(f"Uploaded the {kind} of {repository.made_from} to {address}.")


def make(slug: str, publication: Publication, kind: RepositoryKind) -> Repository:
    """The repository of one kind. Its files are read later, in sessions of their own."""
    if kind is RepositoryKind.dataset and publication.snapshot is None:
        freeze_first(slug)
    with session_scope() as session:
        project = get_project(session, SYSTEM, slug)
        number = publication.snapshot if kind is RepositoryKind.dataset else publication.version
        return uploading.make_repository(session, SYSTEM, project, kind, number, publication.terms)


def freeze_first(slug: str) -> None:
    """Take a snapshot of a project that has none yet."""
    with session_scope() as session:
        project = get_project(session, SYSTEM, slug)
        versions.lock_project(session, project)
        if not snapshots.list_snapshots(session, SYSTEM, project, limit=1).items:
            snapshots.freeze(session, SYSTEM, project, name="published")
