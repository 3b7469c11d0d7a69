"""The shapes that trainers read: which rows records become, how critics are put together, and that texts stay texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.db.sessions import session_scope
from app.services.acceptance.counting import Aggregation
from app.services.acceptance.outcomes import count_records
from app.services.exports.plan import make_prompt_renderer
from app.services.exports.shapes import ExportRow, Format, Shape, Task, counting_rules, dataset_info, make_rows
from illume.model.prompting import DEFAULT_TEMPLATE
from illume.parts import defuse

pytestmark = pytest.mark.usefixtures("embedded")
WORDING = make_prompt_renderer(DEFAULT_TEMPLATE)
NASTY = (
    "🦆👩\u200d👩\u200d👧",
    "שלום עולם \u202eabc",
    "a\nb\r\n\tc\u2028d",
    "\"it's\" \\ 'so'",
    "x" * 4000,
    "<script>alert(1)</script>",
    "{{ 7 * 7 }} {answer} {0}",
    "%s %d %(x)s %",
    "<image> </s> <video>",
    "\u0001\u007f",
    "=1+1",
    "../../etc/passwd",
)
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))


def record(
    *picked: int,
    n: int = 4,
    kind: str | None = None,
    slots: int = 1,
    number: int = 1,
    rationale: str | None = None,
    edited_from: int | None = None,
    answer: str | None = "a duck",
    texts: Sequence[str] = (),
    candidate_set: str = "7",
    state: str = "judged",
    exhaustive: bool = True,
    critic_weight: float = 1,
    parts: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """What a critic said of the set of prompt 5 with `n` candidates, of which those numbered `picked` fit."""
    said = list(texts) or [f"reason {one}" for one in range(n)]
    return {
        "id": str(number),
        "prompt": "5",
        "prompt_state": state,
        "external_id": "five",
        "split": "train",
        "images": [{"sha256": "ab" * 32, "path": f"images/{'ab' * 32}.png", "width": 3, "height": 2}],
        "question": "What is it?",
        "parts": parts or [{"type": "image", "sha256": "ab" * 32}, {"type": "text", "text": "What is it?"}],
        "answer": answer,
        "candidate_set": candidate_set,
        "slots": slots,
        "version": "3",
        "version_number": 1,
        "candidates": [
            {"id": f"{candidate_set}0{one}", "text": text, "picked": one in picked} for one, text in enumerate(said)
        ],
        "critic": f"critic-{number}",
        "kind": kind or ("picked" if picked or rationale else "none_fit"),
        "rationale": rationale,
        "edited_from": None if edited_from is None else f"{candidate_set}0{edited_from}",
        "exhaustive": exhaustive,
        "critic_weight": critic_weight,
    }


def shaped(
    format: Format,  # noqa: A002 - as in the service
    *records: dict[str, Any],
    by: str = "any",
    task: Task = Task.sft,
    weigh: bool = False,
) -> list[ExportRow]:
    shape = Shape(format, Aggregation(by), WORDING, task)
    with session_scope() as session:
        outcomes = count_records(session, records, counting_rules(shape, weigh=weigh))
    return make_rows(list(records), outcomes, shape)


def said(messages: list[ExportRow]) -> str:
    [message] = messages
    return str(message["content"][-1]["text"])


def pairs(*records: dict[str, Any], by: str = "any") -> list[tuple[str, str]]:
    return [(said(row["chosen"]), said(row["rejected"])) for row in shaped(Format.preference, *records, by=by)]


def labels(*records: dict[str, Any], by: str = "any", weigh: bool = False) -> list[tuple[str, bool]]:
    return [(said(row["completion"]), row["label"]) for row in shaped(Format.kto, *records, by=by, weigh=weigh)]


class TestPreference:
    def test_one_of_n_gives_n_less_one_pairs_of_one_group(self) -> None:
        rows = shaped(Format.preference, record(1))
        assert [said(row["rejected"]) for row in rows] == ["reason 0", "reason 2", "reason 3"]
        assert {said(row["chosen"]) for row in rows} == {"reason 1"}
        assert {row["group_id"] for row in rows} == {"7"}
        assert sum(row["weight"] for row in rows) == pytest.approx(1)
        assert [row["id"] for row in rows] == ["5-0", "5-1", "5-2"]
        assert (rows[0]["candidate"], rows[0]["rejected_candidate"]) == ("701", "700")

    def test_several_picked_are_preferred_to_all_others(self) -> None:
        assert pairs(record(0, 2)) == [(f"reason {a}", f"reason {b}") for a in (0, 2) for b in (1, 3)]

    @pytest.mark.parametrize("one", [record(), record(0, 1, 2, 3), record(kind="skipped"), record(1, state="held")])
    def test_without_a_difference_there_is_no_pair(self, one: dict[str, Any]) -> None:
        assert pairs(one) == []

    def test_an_edited_one_is_preferred_to_what_it_was_edited_from(self) -> None:
        edited = record(n=2, rationale="reason 1, but better", edited_from=1)
        [row] = shaped(Format.preference, edited)
        assert (said(row["chosen"]), said(row["rejected"])) == ("reason 1, but better", "reason 1")
        assert (row["source"], row["edited_from"], row["candidate"]) == ("edited", "701", None)
        assert ("reason 1, but better", "reason 1") in pairs(record(0, rationale="reason 1, but better", edited_from=1))

    def test_an_own_one_was_made_from_nothing(self) -> None:
        assert pairs(record(n=2, rationale="mine")) == []

    def test_equal_texts_are_no_pair(self) -> None:
        assert pairs(record(0, texts=["same", "same", "other"])) == [("same", "other")]

    def test_two_sets_of_a_prompt_share_its_weight(self) -> None:
        other = record(0, texts=["it swims", "it barks"], candidate_set="8", number=2)
        rows = shaped(Format.preference, record(1), other)
        assert [row["group_id"] for row in rows] == ["7", "7", "7", "8"]
        assert sum(row["weight"] for row in rows) == pytest.approx(1)

    def test_what_another_set_accepts_is_not_rejected(self) -> None:
        sets = record(1, n=3), record(0, texts=["Reason 0.", "reason 1", "it barks"], candidate_set="8", number=2)
        both = [(said(row["chosen"]), said(row["rejected"])) for row in shaped(Format.preference, *sets)]
        assert both == [("reason 1", "reason 2"), ("Reason 0.", "it barks")]
        labels = [(said(row["completion"]), row["label"]) for row in shaped(Format.kto, *sets)]
        assert [text for text, is_accepted in labels if not is_accepted] == ["reason 2", "it barks"]
        each = shaped(Format.kto, *sets, by="each")
        assert len([row for row in each if not row["label"]]) == 4, "every verdict by itself"

    def test_an_accepted_original_is_no_worse_than_its_edit(self) -> None:
        picked = record(1, n=2, number=2, slots=2)
        edited = record(n=2, rationale="reason 1, but better", edited_from=1, slots=2)
        found = [(said(row["chosen"]), said(row["rejected"])) for row in shaped(Format.preference, edited, picked)]
        assert ("reason 1, but better", "reason 1") not in found


class TestSft:
    def test_picked_edited_and_own(self) -> None:
        rows = shaped(Format.sft, record(2), record(n=3, number=2, rationale="mine", candidate_set="8"))
        assert [(said(row["completion"]), row["source"]) for row in rows] == [
            ("reason 2", "candidate"),
            ("mine", "own"),
        ]
        [edited] = shaped(Format.sft, record(rationale="better", edited_from=0))
        assert (edited["source"], edited["edited_from"]) == ("edited", "700")

    def test_a_text_is_taught_once(self) -> None:
        rows = shaped(Format.sft, record(0, texts=["It is red"]), record(0, texts=["it  is RED"], candidate_set="8"))
        assert [said(row["completion"]) for row in rows] == ["It is red"]
        assert rows[0]["weight"] == 1

    def test_is_trls_prompt_completion_with_images(self) -> None:
        [row] = shaped(Format.sft, record(0))
        asked = {"type": "text", "text": "Q: What is it? A: a duck, seeing that"}
        assert row["prompt"] == [{"role": "user", "content": [{"type": "image", "text": None}, asked]}]
        assert row["completion"] == [{"role": "assistant", "content": [{"type": "text", "text": "reason 0"}]}]
        assert row["images"] == [{"sha256": "ab" * 32, "path": f"images/{'ab' * 32}.png"}]
        assert not row.keys() & {"messages", "tools", "label", "chat_template_kwargs"}

    def test_without_an_answer_the_question_is_asked(self) -> None:
        [row] = shaped(Format.sft, record(0, answer=None))
        assert said(row["prompt"]) == "Q: What is it? A:"


class TestKto:
    def test_all_that_was_judged(self) -> None:
        assert labels(record(1, n=3)) == [("reason 1", True), ("reason 0", False), ("reason 2", False)]

    def test_none_fits_gives_false_only(self) -> None:
        assert labels(record(n=2)) == [("reason 0", False), ("reason 1", False)]
        assert shaped(Format.sft, record()) == []

    def test_an_edited_one_fits_and_its_source_does_not(self) -> None:
        edited = record(n=1, rationale="better", edited_from=0)
        assert labels(edited) == [("better", True), ("reason 0", False)]


class TestAggregation:
    """Three critics on three slots: candidate 0 has three votes, 1 has two, 2 has one, 3 has none."""

    records = (record(0, 1, 2, slots=3), record(0, 1, slots=3, number=2), record(0, slots=3, number=3))

    @pytest.mark.parametrize(
        ("by", "fit", "in_dispute"), [("any", {0, 1, 2}, set()), ("majority", {0, 1}, set()), ("all", {0}, {1})]
    )
    def test_of_all_critics(self, by: str, fit: set[int], in_dispute: set[int]) -> None:
        wanted = {(f"reason {one}", one in fit) for one in range(4) if one not in in_dispute}
        assert set(labels(*self.records, by=by)) == wanted
        assert {said(row["completion"]) for row in shaped(Format.sft, *self.records, by=by)} == {
            f"reason {one}" for one in fit
        }

    def test_each_has_rows_of_their_own(self) -> None:
        rows = shaped(Format.preference, *self.records, by="each")
        assert len(rows) == 3 + 4 + 3
        assert {row["critic"] for row in rows} == {"critic-1", "critic-2", "critic-3"}
        assert {row["group_id"] for row in rows} == {"7-1", "7-2", "7-3"}
        assert sum(row["weight"] for row in rows) == pytest.approx(1)
        assert len(shaped(Format.sft, *self.records, by="each")) == 6

    def test_what_may_still_change_is_left_out(self) -> None:
        assert labels(record(0, n=2, slots=3), by="majority") == []
        assert labels(record(0, n=2, slots=2), by="all") == [("reason 1", False)]
        two = [record(0, n=2, slots=3, number=number) for number in (1, 2)]
        assert labels(*two, by="majority") == [("reason 0", True), ("reason 1", False)]

    def test_a_tie_is_in_dispute(self) -> None:
        two = [record(0, 1, n=3, slots=2), record(0, n=3, slots=2, number=2)]
        for by in ("majority", "all"):
            assert labels(*two, by=by) == [("reason 0", True), ("reason 2", False)]

    def test_only_who_looked_at_all_candidates_turns_some_down(self) -> None:
        assert labels(record(0, n=2, exhaustive=False)) == [("reason 0", True)]
        assert pairs(record(0, n=2, exhaustive=False)) == []
        two = [record(0, n=2, slots=2, number=one, exhaustive=one == 1) for one in (1, 2)]
        assert labels(*two) == [("reason 0", True)]
        three = [record(0, n=2, slots=3, number=one, exhaustive=one != 1) for one in (1, 2, 3)]
        assert labels(*three) == [("reason 0", True), ("reason 1", False)]
        assert labels(*two, by="each") == [("reason 0", True), ("reason 1", False), ("reason 0", True)]

    def test_reliable_critics_weigh_more(self) -> None:
        three = [
            record(0, n=2, slots=3, critic_weight=1),
            record(1, n=2, slots=3, number=2, critic_weight=0.4),
            record(1, n=2, slots=3, number=3, critic_weight=0.4),
        ]
        assert labels(*three, by="majority") == [("reason 1", True), ("reason 0", False)]
        assert labels(*three, by="majority", weigh=True) == [("reason 0", True), ("reason 1", False)]

    def test_records_of_before_weigh_one_and_looked_at_all(self) -> None:
        old = record(0, n=2)
        del old["exhaustive"], old["critic_weight"]
        assert labels(old, weigh=True) == [("reason 0", True), ("reason 1", False)]

    def test_own_texts_that_differ_in_case_or_full_stop_are_one(self) -> None:
        two = [record(n=1, slots=2, rationale="Ours."), record(n=1, slots=2, number=2, rationale="ours", edited_from=0)]
        [row] = shaped(Format.sft, *two, by="all")
        assert (said(row["completion"]), row["votes"], row["source"]) == ("Ours.", 2, "edited")

    def test_own_texts_are_voted_on_too(self) -> None:
        two = [record(n=1, slots=2, number=number, rationale="ours") for number in (1, 2)]
        assert [said(row["completion"]) for row in shaped(Format.sft, *two, by="all")] == ["ours"]
        assert shaped(Format.sft, two[0], record(n=1, slots=2, number=2), by="all") == []


ROLE_KEYS = {"from", "value"}
KNOWN_KEYS = {"file_name", "formatting", "ranking", "columns"}
KNOWN_COLUMNS = {"messages", "images", "chosen", "rejected", "kto_tag"}


class TestSharegpt:
    """As LLaMA-Factory documents it: turns of `from` and `value`, an `<image>` for each image, a list of paths."""

    @pytest.mark.parametrize("task", list(Task))
    def test_rows_fit_their_description(self, task: Task) -> None:
        info = dataset_info("ducks", "ducks.jsonl", task)["ducks"]
        assert info.keys() <= KNOWN_KEYS
        assert info["columns"].keys() <= KNOWN_COLUMNS
        assert (info["file_name"], info["formatting"]) == ("ducks.jsonl", "sharegpt")
        assert info.get("ranking", False) is (task is Task.preference)
        rows = shaped(Format.sharegpt, record(1), task=task)
        assert len(rows) == {"sft": 1, "preference": 3, "kto": 4}[task]
        for row in rows:
            assert set(info["columns"].values()) <= row.keys()
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"][: 1 if task is Task.preference else 2]
            assert all(turn.keys() == ROLE_KEYS for turn in turns)
            assert turns[0]["value"].count("<image>") == len(row["images"]) == 1
            assert row["images"] == [f"images/{'ab' * 32}.png"]
            if task is Task.preference:
                assert {row["chosen"]["from"], row["rejected"]["from"]} == {"gpt"}
            if task is Task.kto:
                assert type(row["label"]) is bool

    @given(texts, texts)
    @settings(deadline=None, max_examples=60)
    def test_no_text_is_a_place_for_an_image(self, one: str, other: str) -> None:
        [row] = shaped(Format.sharegpt, record(0, texts=[one], answer=other))
        assert "".join(turn["value"] for turn in row["conversations"]).count("<image>") == 1


class TestParts:
    """A picture that is shown again, a text with a placeholder, and a text before every picture."""

    ONE, OTHER = "ab" * 32, "cd" * 32

    def interleaved(self) -> dict[str, Any]:
        sizes = {"width": 3, "height": 2}
        parts = [
            {"type": "text", "text": "Compare"},
            {"type": "image", "sha256": self.ONE},
            {"type": "text", "text": "with <image>"},
            {"type": "text", "text": "that is"},
            {"type": "image", "sha256": self.OTHER},
            {"type": "image", "sha256": self.ONE},
        ]
        images = [{"sha256": one, "path": f"images/{one}.png", **sizes} for one in (self.ONE, self.OTHER)]
        return record(1, n=2, parts=parts) | {"images": images, "question": "Compare with <image> that is"}

    @pytest.mark.parametrize("form", [Format.sft, Format.preference, Format.kto])
    def test_stand_in_their_order(self, form: Format) -> None:
        row = shaped(form, self.interleaved())[0]
        [turn] = row["prompt"]
        assert turn["content"] == [
            {"type": "text", "text": "Q: Compare"},
            {"type": "image", "text": None},
            {"type": "text", "text": "with < image>\nthat is"},
            {"type": "image", "text": None},
            {"type": "image", "text": None},
            {"type": "text", "text": " A: a duck, seeing that"},
        ]
        assert [one["sha256"] for one in row["images"]] == [self.ONE, self.OTHER, self.ONE]

    @pytest.mark.parametrize("task", Task)
    def test_are_marked_where_they_stand(self, task: Task) -> None:
        row = shaped(Format.sharegpt, self.interleaved(), task=task)[0]
        assert row["conversations"][0]["value"] == (
            "Q: Compare<image>with < image>\nthat is<image><image> A: a duck, seeing that"
        )
        assert row["images"] == [f"images/{one}.png" for one in (self.ONE, self.OTHER, self.ONE)]

    @pytest.mark.parametrize("task", Task)
    def test_there_are_as_many_placeholders_as_pictures(self, task: Task) -> None:
        """LLaMA-Factory refuses a row whose turns together, the chosen or the rejected one too, have more or fewer."""
        tags = "<image>, <video> or <audio>?"
        texts = [f"{tags} Yes.", "an <image> of a duck"]
        record_of_tags = self.interleaved() | record(0, texts=texts, answer=tags, rationale=f"none: {tags}")
        prompt = {name: self.interleaved()[name] for name in ("parts", "images", "question")}
        rows = shaped(Format.sharegpt, record_of_tags | prompt, task=task)
        assert rows
        for row in rows:
            ends = [[row[name]] for name in ("chosen", "rejected") if name in row] or [[]]
            for end in ends:
                said = [turn["value"] for turn in (*row["conversations"], *end)]
                counts = {tag: sum(text.count(tag) for text in said) for tag in ("<image>", "<video>", "<audio>")}
                assert counts == {"<image>": len(row["images"]), "<video>": 0, "<audio>": 0}
                assert len(row["images"]) == 3

    def test_of_pictures_alone(self) -> None:
        alone = record(1, n=2, answer=None, parts=[{"type": "image", "sha256": self.ONE}]) | {"question": ""}
        row = shaped(Format.sharegpt, alone)[0]
        assert row["conversations"][0]["value"] == "Q: <image> A:"

    def test_records_from_before_there_were_parts_are_in_the_short_form(self) -> None:
        old = {key: value for key, value in record(1).items() if key != "parts"}
        assert shaped(Format.sft, old) == shaped(Format.sft, record(1))


class TestTexts:
    @given(texts, texts, texts)
    @settings(deadline=None, max_examples=120)
    def test_stay_as_they_are(self, one: str, other: str, answer: str) -> None:
        """Through every shape and its JSON, whatever they look like; a space comes into placeholders only."""
        judged = record(0, texts=[one, other], answer=answer, rationale=other, edited_from=0)
        for form in (Format.sft, Format.preference, Format.kto):
            rows = [orjson.loads(orjson.dumps(row)) for row in shaped(form, judged)]
            assert rows == shaped(form, judged)
            found = {said(row[name]) for row in rows for name in ("completion", "chosen", "rejected") if name in row}
            assert found <= {defuse(one), defuse(other)}
            assert all(defuse(answer.strip()) in said(row["prompt"]) for row in rows)
            assert not rows or sum(row["weight"] for row in rows) == pytest.approx(1)
