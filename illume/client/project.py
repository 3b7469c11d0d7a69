"""One project on a server: its prompts, judging, rounds, versions and data sets."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from illume.client import tables
from illume.client.connection import Connection, Pages
from illume.client.errors import RoundFailed, Unreachable
from illume.client.prompts import NewPrompt, Picture, add_all
from illume.client.shapes import Added, Candidate, Claim, Policy, Project, Prompt, Round, Verdict, Version, id_of, read

if TYPE_CHECKING:
    import datasets
    import pandas
    import polars

Format = Literal["records", "sft", "preference", "kto", "sharegpt", "fields", "answers"]
Kind = Literal["picked", "none_fit", "skipped", "flagged"]
Split = Literal["train", "val", "test"]
POLL_SECONDS = 2.0
BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed}"


class PromptFields(TypedDict, total=False):
    """What a prompt may have besides pictures, question and answer, as in `NewPrompt`."""

    external_id: str | None
    split: Split
    references: Sequence[str]
    metadata: dict[str, Any]
    priority: int
    candidates: Sequence[str] | None
    parts: Sequence[str | Picture]
    policy: str | None
    fields: Mapping[str, str | None] | None


class VerdictFields(TypedDict, total=False):
    """What a verdict may have besides its picks. `edited_from` is the candidate from which `rationale` was made."""

    rationale: str | None
    edited_from: Candidate | str | None
    tags: dict[str, list[str]]
    reason: str | None
    comment: str | None
    seconds: float | None
    exhaustive: bool
    fields: Mapping[str, str | None]


class DatasetFilters(TypedDict, total=False):
    """Which rows a data set has. `images='path'` leaves the pictures' bytes out.

    `machine`, of the format sft: also what only a machine critic accepted.
    """

    aggregation: Literal["any", "majority", "all", "each"]
    task: Literal["sft", "preference", "kto"]
    round: Round | str
    version: Version | str
    critic: str
    since: datetime
    split: Split
    snapshot: str
    images: Literal["embedded", "path"]
    machine: bool


class ProjectClient:
    """One project on a server. `Client.project` makes it."""

    def __init__(self, connection: Connection, slug: str) -> None:
        self._connection = connection
        self.slug = slug

    def get(self) -> Project:
        """The project with its settings, as far as you may see them."""
        return read(Project, self._connection.ask("GET", f"projects/{self.slug}"))

    def change(self, **settings: Any) -> Project:
        """Change the name or settings; only those that are given change."""
        return read(Project, self._connection.ask("PATCH", f"projects/{self.slug}", json=settings))

    def stats(self) -> dict[str, Any]:
        """Counts, pace, agreement, and the progress to the next round."""
        return dict(self._connection.ask("GET", f"projects/{self.slug}/stats"))

    def add_prompts(self, prompts: Iterable[NewPrompt], *, progress: bool | None = None) -> Added:
        """Upload the pictures of prompts and add the prompts, many at a time. Each stands on its own.

        A prompt without an `external_id` gets one made of its contents: a script that was interrupted may be run
        again, and adds nothing twice. `progress` shows a bar; by default only in a terminal.
        """
        return add_all(self._connection, self.slug, prompts, progress=progress)

    def add_prompt(
        self,
        images: Picture | Sequence[Picture] = (),
        question: str = "",
        answer: str | None = None,
        **more: Unpack[PromptFields],
    ) -> Prompt:
        """Add one prompt, as `add_prompts` does. Raises `Refused` where it is turned away."""
        added = self.add_prompts([NewPrompt(images, question, answer, **more)], progress=False)
        added.raise_for_errors()
        return added.prompts[0]

    def policies(self) -> Pages[Policy]:
        """The versions of the project's policies, oldest first."""
        return self._pages("policies", Policy)

    def add_policy(self, name: str, categories: Sequence[Mapping[str, Any]], *, preamble: str = "") -> Policy:
        """Add a policy, or under the name of one its next version. The same again adds nothing.

        A category has a `name`, a `status` (default, allowed or strict), and `texts` with what each status says.
        """
        body = {"name": name, "preamble": preamble, "categories": [dict(one) for one in categories]}
        return read(Policy, self._connection.ask("POST", f"projects/{self.slug}/policies", json=body))

    def prompts(
        self,
        *,
        split: Split | None = None,
        state: str | None = None,
        q: str | None = None,
        external_id: str | None = None,
    ) -> Pages[Prompt]:
        """The prompts in the order they were added; `q` is a part of question, answer or external id."""
        return self._pages("prompts", Prompt, split=split, state=state, q=q, external_id=external_id)

    def claim(self) -> Claim | None:
        """Claim the next candidate set to judge; None where none is ready.

        Where you hold as many as the project allows, the oldest of them comes again: so does one whose answer was lost.
        """
        answer = self._connection.ask("POST", f"projects/{self.slug}/assignments")
        return None if answer is None else read(Claim, answer)

    def rate(self, claim: Claim | str, fields: Mapping[str, str | None]) -> Claim:
        """Say what holds of the pictures, where answers have fields. Returns the claim with its candidates.

        You say so once: what you think better of afterwards goes into the verdict, as `judge(..., fields=...)`.
        """
        body = {"fields": dict(fields)}
        return read(Claim, self._connection.ask("POST", f"assignments/{id_of(claim)}/fields", json=body))

    def judge(
        self,
        claim: Claim | str,
        picks: Iterable[Candidate | str] = (),
        *,
        kind: Kind | None = None,
        key: str | None = None,
        **more: Unpack[VerdictFields],
    ) -> Verdict:
        """Say which candidates of a claim fit, or give the `kind` of verdict where none was picked.

        The same idempotency `key` twice is one verdict; without it each call gets a key of its own.
        """
        return read(
            Verdict,
            self._connection.ask(
                "POST",
                f"assignments/{id_of(claim)}/verdict",
                json=verdict_body(picks, kind, more),
                headers={"Idempotency-Key": key or str(uuid.uuid4())},
            ),
        )

    def change_verdict(
        self,
        verdict: Verdict | str,
        picks: Iterable[Candidate | str] = (),
        *,
        kind: Kind | None = None,
        **more: Unpack[VerdictFields],
    ) -> Verdict:
        """Change a verdict of your own: a new one, which is returned, supersedes it.

        Where the connection breaks before the answer arrives it is not tried again: look at your verdicts.
        """
        body = verdict_body(picks, kind, more)
        return read(Verdict, self._connection.ask("PUT", f"verdicts/{id_of(verdict)}", json=body, repeatable=False))

    def extend(self, claim: Claim | str) -> Claim:
        """Hold a claim for longer."""
        return read(Claim, self._connection.ask("POST", f"assignments/{id_of(claim)}/heartbeat"))

    def release(self, claim: Claim | str) -> None:
        """Give a claim back, for others."""
        self._connection.ask("POST", f"assignments/{id_of(claim)}/release")

    def verdicts(self, *, critic: str | None = None, cursor: str | None = None) -> Pages[Verdict]:
        """Verdicts in the order of their commits; `critic='me'` for your own.

        Keep the `cursor` of what this returns, and later give it to go on from there.
        """
        return self._pages("verdicts", Verdict, critic=critic, cursor=cursor)

    def rounds(self) -> Pages[Round]:
        """The rounds, newest first, without their losses."""
        return self._pages("rounds", Round)

    def start_round(self) -> Round:
        """Start a round of all that is accepted by now. Raises `Refused` (409) where that is nothing."""
        before = self._newest_round()
        try:
            answer = self._connection.ask("POST", f"projects/{self.slug}/rounds", repeatable=False)
        except Unreachable:
            newest = self._newest_round()
            if newest is None or (before is not None and newest.number == before.number):
                raise
            return newest
        return read(Round, answer)

    def round(self, round_id: str) -> Round:
        """A round with its losses, by its id."""
        return read(Round, self._connection.ask("GET", f"rounds/{round_id}"))

    def cancel_round(self, round_: Round | str) -> Round:
        """Stop a round."""
        return read(Round, self._connection.ask("POST", f"rounds/{id_of(round_)}/cancel"))

    def resume_round(self, round_: Round | str) -> Round:
        """Let a round that failed or was cancelled go on from its last checkpoint. Raises `Refused` (409) otherwise."""
        return read(Round, self._connection.ask("POST", f"rounds/{id_of(round_)}/retry", repeatable=False))

    def wait_for_round(
        self, round_: Round | str, *, timeout: float | None = None, progress: bool | None = None
    ) -> Round:
        """Wait until a round has ended, and return it. `progress` shows a bar; by default only in a terminal.

        Raises `RoundFailed` for one that failed or was cancelled, and `TimeoutError` after `timeout` seconds.
        """
        from tqdm import tqdm

        deadline = None if timeout is None else time.monotonic() + timeout
        with tqdm(total=1.0, disable=None if progress is None else not progress, bar_format=BAR) as bar:
            while True:
                now = self.round(id_of(round_))
                bar.set_description(f"round {now.number}, {now.state}", refresh=False)
                bar.n = 1.0 if now.has_ended else now.fraction
                bar.refresh()
                if now.state == "succeeded":
                    return now
                if now.has_ended:
                    raise RoundFailed(now.number, now.state, now.error)
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"Round {now.number} is still {now.state} after {timeout:g} s.")
                time.sleep(POLL_SECONDS)

    def versions(self) -> Pages[Version]:
        """The model versions, newest first."""
        return self._pages("versions", Version)

    def activate(self, version: Version | str) -> Version:
        """Make a version the one that writes candidates."""
        return read(Version, self._connection.ask("POST", f"versions/{id_of(version)}/activate"))

    @overload
    def dataset(
        self, format: Format = ..., *, to: Literal["pandas"] = ..., **filters: Unpack[DatasetFilters]
    ) -> pandas.DataFrame: ...
    @overload
    def dataset(
        self, format: Format = ..., *, to: Literal["polars"], **filters: Unpack[DatasetFilters]
    ) -> polars.DataFrame: ...
    @overload
    def dataset(
        self, format: Format = ..., *, to: Literal["datasets"], **filters: Unpack[DatasetFilters]
    ) -> datasets.Dataset: ...

    def dataset(
        self,
        format: Format = "records",  # noqa: A002 - the parameter's name over REST
        *,
        to: tables.Kind = "pandas",
        **filters: Unpack[DatasetFilters],
    ) -> Any:
        """What critics said, as a trainer reads it: a DataFrame of pandas or polars, or a `datasets.Dataset`.

        Raises `ImportError` where the package that `to` names is not installed.
        """
        return tables.load(self._connection, self.slug, to, dataset_params(format, filters))

    def rows(
        self,
        format: Format = "records",  # noqa: A002 - the parameter's name over REST
        **filters: Unpack[DatasetFilters],
    ) -> Iterator[dict[str, Any]]:
        """The rows of a data set one by one, as they arrive. A stream that breaks off goes on where it stood."""
        return tables.stream(self._connection, self.slug, dataset_params(format, filters))

    def _pages(self, path: str, kind: type[Any], **params: Any) -> Pages[Any]:
        return Pages(self._connection, f"projects/{self.slug}/{path}", kind, **params)

    def _newest_round(self) -> Round | None:
        newest = Pages(self._connection, f"projects/{self.slug}/rounds", Round, limit=1)
        return next(iter(newest), None)


def verdict_body(picks: Iterable[Candidate | str], kind: Kind | None, more: VerdictFields) -> dict[str, Any]:
    """A verdict as it is sent. Raises ValueError where nothing says what it is."""
    chosen = [id_of(pick) for pick in picks]
    if kind is None and not chosen and not more.get("rationale"):
        raise ValueError("Nothing is picked: give kind='none_fit' if no candidate fits, or 'skipped' or 'flagged'.")
    body: dict[str, Any] = {"kind": kind or "picked", "picks": chosen, **more}
    if more.get("edited_from") is not None:
        body["edited_from"] = id_of(body["edited_from"])
    return body


def dataset_params(format: Format, filters: DatasetFilters) -> dict[str, str]:  # noqa: A002 - as over REST
    """The query of a data set."""
    return {"format": format, **{name: filter_text(value) for name, value in filters.items() if value is not None}}


def filter_text(value: Any) -> str:
    """A filter of a data set as it stands in the query."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime) else id_of(value)
