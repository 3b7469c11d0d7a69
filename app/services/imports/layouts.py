"""What the columns of a table mean: our own fields, those of known data sets, or a mapping chosen by a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from datetime import date, time
from enum import StrEnum
from typing import Any
from unicodedata import combining, normalize

import orjson
from rapidfuzz.distance import OSA

from app.errors import Invalid
from app.models import Split
from app.services.exports.shapes import ANSWER_COLUMNS
from app.services.exports.verdict_table import uncell
from app.services.imports import cells, conversations
from app.services.imports.elsewhere.tasks import Origin
from app.services.imports.tables.lines import KEY_COLUMN
from app.services.imports.tables.rows import is_missing, measure_depth
from app.services.imports.tables.table import TableKind
from app.services.kernel.text_rules import MAX_DEPTH
from app.services.prompts.prompts import PromptIn
from app.services.prompts.val_split import VAL_SHARE
from illume.fields.definitions import AnswerFields
from illume.fields.variants import Change
from illume.phrases import _

LARGEST_EXACT = 2.0**53
"""Above it not every whole number is one of floating point."""
ACTION_QUESTION = "What is the person doing?"
POLICY_QUESTION = "Does the picture comply with the policy?"


class Layout(StrEnum):
    """The data set whose columns a table has."""

    own = "own"
    vqa_x = "vqa-x"
    act_x = "act-x"
    a_okvqa = "a-okvqa"
    records = "records"
    chat = "chat"
    label_studio = "label-studio"
    argilla = "argilla"
    potato = "potato"

    @property
    def is_of_records(self) -> bool:
        """Whether rows bring candidate sets and verdicts."""
        return self is Layout.records or self.is_of_another_tool

    @property
    def is_of_another_tool(self) -> bool:
        """Whether another annotation tool exported the file, whose tasks are read as records."""
        return self.value in set(Origin)


class Target(StrEnum):
    """What a column may become. Only `image`, `reference`, `candidate` and `field` may occur several times.

    `field`: the gold value of the field of an answer that the column is named after; `gold`: an object of such values.
    """

    image = "image"
    parts = "parts"
    conversation = "conversation"
    question = "question"
    answer = "answer"
    external_id = "external_id"
    split_name = "split"
    reference = "reference"
    candidate = "candidate"
    priority = "priority"
    policy = "policy"
    field = "field"
    gold = "fields"
    metadata = "metadata"
    ignore = "ignore"


MULTI_VALUED = (Target.image, Target.reference, Target.candidate)
PROMPT_FIELDS = {Target.image: "images", Target.reference: "references", Target.candidate: "candidates"}
SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}

# Column names that are recognised, also with a number at the end (`reference_2`).
COLUMN_NAMES = {
    Target.image: ("image", "images", "file_name", "image_path", "image_url", "image_name", "img", "image_id"),
    Target.parts: ("parts",),
    Target.question: ("question",),
    Target.answer: ("answer", "answers", "multiple_choice_answer"),
    Target.external_id: ("external_id", "question_id", "id", KEY_COLUMN),
    Target.split_name: ("split",),
    Target.reference: ("reference", "references", "explanation", "explanations", "rationale", "rationales"),
    Target.candidate: ("candidate", "candidates"),
    Target.priority: ("priority",),
}
CHAT_COLUMNS = ("messages", "conversations", "conversation", "prompt", "query")
"""The columns of conversations, the likeliest first."""
# Other words for the same, and those in German, French and Spanish, without accents.
OTHER_NAMES = {
    Target.image: (
        *("photo", "photos", "picture", "pictures", "bild", "bilder", "foto", "fotos", "dateiname", "bilddatei"),
        *("bildname", "fichier", "imagen", "imagenes", "fotografia", "archivo"),
    ),
    Target.question: ("query", "frage", "fragen", "pregunta", "preguntas"),
    Target.answer: ("antwort", "antworten", "reponse", "reponses", "respuesta", "respuestas"),
    Target.external_id: ("kennung", "identifiant", "identificador"),
    Target.split_name: ("aufteilung", "partition", "particion"),
    Target.reference: (
        *("justification", "begruendung", "begrundung", "erklarung", "erklaerung", "referenz"),
        *("explication", "explicacion", "justificacion"),
    ),
    Target.candidate: ("kandidat", "kandidaten", "candidat", "candidats", "candidato", "candidatos", "vorschlag"),
    Target.priority: ("prioritat", "prioritaet", "priorite", "prioridad"),
}
# What may stand beside such a name: "img_path", "FRAGE (DE)", "fichier image".
BESIDE_NAMES = frozenset(
    (
        *("text", "path", "file", "name", "url", "value", "column", "gold", "the"),
        *("de", "en", "fr", "es", "la", "le", "el", "datei", "pfad", "spalte", "texte"),
        *("fichier", "chemin", "nom", "archivo", "ruta", "nombre", "texto"),
    )
)
SIMILAR = 0.83
"""How alike a name must be to be taken for another; one wrong letter in six is 0.83."""
SHORTEST_SIMILAR = 5
NAME_PARTS = re.compile(r"[\W_]+")
OWN_FIELDS = tuple(PromptIn.model_fields)
ADDED_TO_VAL = "added_to_val"
"""The key beside a stored plan under which an import counts the prompts that it added to val."""
VARIANTS_ADDED = "variants_added"
"""The key beside a stored plan under which an import counts the prompts that it added under variants of policies."""
IMAGE_CHANGES = "image_changes"
"""The key beside a stored plan under which an import counts what was done to images, by kind of change."""
ORDERED: Mapping[Target, Callable[[Any, str], Any]] = {
    Target.parts: conversations.read_parts,
    Target.conversation: conversations.read_turns,
}
LISTED = (*MULTI_VALUED, *ORDERED, Target.answer, Target.gold, Target.metadata)
"""What may be a list or an object in a cell of CSV."""


EXPORTED: Mapping[frozenset[str], Mapping[str, Target]] = {
    frozenset({"n_candidates", "n_picked", "picked", "parts"}): {
        **dict.fromkeys(("images", "question"), Target.ignore),  # `parts` says both
        **{one.value: one for one in (Target.parts, Target.answer, Target.external_id, Target.split_name)},
    },
    frozenset({"schema_version", "group_id", "votes", "source"}): {
        **dict.fromkeys(("prompt", "conversations"), Target.conversation),
        "images": Target.image,
        "external_id": Target.external_id,
        "split": Target.split_name,
    },
}
"""Our own exports that are no records, by columns that no other table has: verdicts as CSV, and rows to train on.

All their other columns say what critics did, such as `candidate`, the id of one."""


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """How rows become prompts.

    A row without a split gets `split`, one without a question `question`. `propose_val`: of such rows, those of
    `val_share` of the images get val instead of train. `strict`: a column without a target is an error, so that a
    misspelt field is not lost among the metadata. `scale_down`: images over 40 megapixels are scaled down to them
    instead of rejected. `encoding`: how a table of text is read; that of others is empty. `answer_fields` are the names
    of the fields of the project's answers, and `rationale` the one that is the rationale. `exported`: an apostrophe
    stands before what a spreadsheet would run, as our own exports have it. `variants`: the changes of
    their policies under which prompts are added as well.
    """

    layout: Layout = Layout.own
    columns: Mapping[str, Target] = field(default_factory=dict)
    split: Split = Split.train
    question: str | None = None
    strict: bool = False
    flat: bool = False
    propose_val: bool = False
    val_share: float = VAL_SHARE
    scale_down: bool = False
    encoding: str = ""
    answer_fields: tuple[str, ...] = ()
    rationale: str = ""
    variants: tuple[Change, ...] = ()
    exported: bool = False

    @property
    def places_by_image(self) -> bool:
        """Whether rows that name no split are put into train or val by their images."""
        return self.propose_val and self.split is Split.train and not self.layout.is_of_records

    @property
    def needs_admin(self) -> bool:
        """Whether only an admin may start the import: it adds variants of policies, or verdicts of others."""
        return bool(self.variants) or self.layout.is_of_records

    @property
    def lacks_split(self) -> bool:
        """Whether these are prompts of one's own of which no column is the split; known data sets have val files."""
        return self.layout is Layout.own and Target.split_name not in self.columns.values()

    def as_json(self) -> dict[str, Any]:
        """The plan as stored in the import's row."""
        return {
            "layout": self.layout.value,
            "columns": [[column, target.value] for column, target in self.columns.items()],  # JSONB keeps no order
            "split": self.split.value,
            "question": self.question,
            "strict": self.strict,
            "flat": self.flat,
            "propose_val": self.propose_val,
            "val_share": self.val_share,
            "scale_down": self.scale_down,
            "encoding": self.encoding,
            "answer_fields": list(self.answer_fields),
            "rationale": self.rationale,
            "variants": list(self.variants),
            "exported": self.exported,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImportPlan:
        """Read a stored plan."""
        columns = {column: Target(target) for column, target in data["columns"]}
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        return cls(**{**known, "layout": Layout(data["layout"]), "columns": columns, "split": Split(data["split"])})


def detect_layout(columns: Iterable[str]) -> Layout:
    """Detect the data set from its columns."""
    names = set(columns)
    if {"candidate_set", "candidates", "shown", "kind"} <= names:
        return Layout.records
    if "question" not in names and is_chat(names):
        return Layout.chat
    if {"choices", "rationales"} <= names or {"correct_choice_idx", "direct_answers"} <= names:
        return Layout.a_okvqa
    if "explanation" in names and "image_id" in names and {"question", "multiple_choice_answer"} & names:
        return Layout.vqa_x
    if "explanation" in names and "answers" in names and "question" not in names:
        return Layout.act_x
    return Layout.own


def is_chat(names: Set[str]) -> bool:
    """Whether columns are those of conversations, as trainers of chat models read them."""
    answered = {"completion", "chosen", "rejected"} & names
    return bool(
        {"messages", "conversations"} & names or {"query", "response"} <= names or ("prompt" in names and answered)
    )


def guess_target(column: str) -> Target | None:
    """Guess what a column is from its name."""
    plain = column.strip().lower().replace(" ", "_")
    name = plain.rstrip("0123456789")
    name = plain if name == plain else name[:-1] if name.endswith(("_", "-")) else name
    for target, names in COLUMN_NAMES.items():
        if name in names or plain in names:
            return target
    name = "".join(letter for letter in normalize("NFKD", name) if not combining(letter))
    found = guess_alike(name)
    words = [word for word in NAME_PARTS.split(name) if word]
    rest = [word for word in words if word not in BESIDE_NAMES]
    return guess_alike(rest[0]) if found is None and len(rest) == 1 else found


def guess_alike(name: str) -> Target | None:
    """Guess what a column is from another word for it, in another language, or with a slip."""
    best, found = SIMILAR, None
    for target in (one for one in COLUMN_NAMES if one is not Target.parts):
        for known in (*COLUMN_NAMES[target], *OTHER_NAMES.get(target, ())):
            if name == known:
                return target
            if min(len(name), len(known)) >= SHORTEST_SIMILAR:
                likeness = OSA.normalized_similarity(name, known, score_cutoff=SIMILAR)
                if likeness > best:
                    best, found = likeness, target
    return found


def find_missing(plan: ImportPlan) -> str:
    """What an import with this plan lacks, so that every row would be rejected; empty where it lacks nothing."""
    if plan.layout.is_of_records:
        return ""
    targets = set(plan.columns.values())
    if targets & {Target.parts, Target.conversation}:
        return ""
    if Target.image not in targets and KEY_COLUMN not in plan.columns:
        return _("Choose the column that names the images.")
    if Target.question not in targets and not plan.question:
        return _("Choose the column with the question, or enter a question for rows without one.")
    return ""


OWN_TARGETS = {name: guess_target(name) or Target.metadata for name in OWN_FIELDS}
OWN_TARGETS |= {"policy": Target.policy, "fields": Target.gold}


def make_plan(
    kind: TableKind,
    columns: Sequence[str],
    *,
    split: Split = Split.train,
    loose: bool = False,
    origin: Origin | None = None,
    answer_fields: AnswerFields | None = None,
) -> ImportPlan:
    """Make a plan from the column names, and from the tool that exported the table.

    `loose`: unknown columns of our own NDJSON become metadata too. Columns that are named after `answer_fields` hold
    their gold values, and the one of the rationale references.
    """
    layout = detect_layout(columns) if origin is None else Layout(origin.value)
    structured = answer_fields is not None and is_of_fields(columns, answer_fields)
    own_lines = layout is Layout.own and kind is TableKind.ndjson and not loose and not structured
    targets: dict[str, Target] = {}
    taken: set[Target] = set()
    exported = next((known for names, known in EXPORTED.items() if names <= set(columns)), None)
    # If several columns could be the image, the one listed first in `COLUMN_NAMES` is chosen.
    chat = next((one for one in CHAT_COLUMNS if one in columns), None) if layout is Layout.chat else None
    for column in sorted(columns, key=_column_rank):
        target = Target.conversation if column == chat else guess_target(column)
        if layout is Layout.chat and column == "response":
            target = Target.answer
        if answer_fields is not None:
            target = structured_target(column, answer_fields) or target
        if exported is not None:
            target = exported.get(column)
        if own_lines:
            target = OWN_TARGETS[column] if column in OWN_FIELDS and column != "metadata" else None
        once = target is not None and (
            target not in (*MULTI_VALUED, Target.field, Target.ignore)
            or (target is Target.image and not _is_numbered(column))
        )
        if target is None or (once and target in taken):
            targets[column] = Target.metadata
        else:
            targets[column] = target
            taken.add(target)
    return ImportPlan(
        layout=layout,
        columns={column: targets[column] for column in columns if not own_lines or column in OWN_FIELDS},
        split=split,
        question=_default_question(layout, answer_fields),
        strict=own_lines,
        flat=kind in (TableKind.csv, TableKind.xlsx),
        answer_fields=() if answer_fields is None else answer_fields.names,
        rationale="" if answer_fields is None else answer_fields.rationale.name,
        exported=kind is TableKind.csv and (exported is not None or set(ANSWER_COLUMNS) <= set(columns)),
    )


def _default_question(layout: Layout, answer_fields: AnswerFields | None) -> str | None:
    if layout is Layout.act_x:
        return ACTION_QUESTION
    return POLICY_QUESTION if layout is Layout.own and answer_fields is not None else None


def is_of_fields(columns: Sequence[str], answer_fields: AnswerFields) -> bool:
    """Whether rows have a column for each field of an answer, not prompts as REST takes them."""
    return "images" not in columns and any(one == "policy" or one in answer_fields.names for one in columns)


def structured_target(column: str, answer_fields: AnswerFields) -> Target | None:
    """What a column is where answers have fields, by its exact name."""
    if column == answer_fields.rationale.name:
        return Target.reference
    if column in answer_fields.names:
        return Target.field
    return {"policy": Target.policy, "fields": Target.gold}.get(column)


def _column_rank(column: str) -> int:
    names = [name for several in COLUMN_NAMES.values() for name in several]
    name = column.strip().lower()
    return names.index(name) if name in names else len(names)


def _is_numbered(column: str) -> bool:
    return column[-1:].isdigit()


def with_columns(
    plan: ImportPlan, columns: Mapping[str, str], *, split: Split, question: str | None = None
) -> ImportPlan:
    """The plan with the targets a person chose. Raises `Invalid`, which names the column."""
    chosen: dict[str, Target] = {}
    for column, text in columns.items():
        if text not in set(Target):
            known = ", ".join(Target)
            raise Invalid(
                _(
                    "The column '%(column)s' cannot become '%(text)s', only %(known)s.",
                    column=column[:60],
                    text=text[:60],
                    known=known,
                ),
                field="mapping",
            )
        chosen[column] = Target(text)
    targets = list(chosen.values())
    twice = next(
        (one for one in Target if one not in (*MULTI_VALUED, "field", "metadata", "ignore") and targets.count(one) > 1),
        None,
    )
    if twice is not None:
        raise Invalid(_("Only one column can become the %(value)s.", value=twice.value), field="mapping")
    question = (question or "").strip() or plan.question
    return replace(plan, columns={**plan.columns, **chosen}, split=split, question=question, strict=False)


# Rows


def row_to_prompt(plan: ImportPlan, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row to the input of `parse_prompt`; images are still named as in the row. Raises `Invalid`.

    The same table becomes the same prompts, whatever kind of file it comes in: see `cells`.
    """
    if plan.strict:
        refuse_unknown(values)
    item: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for column, cell in values.items():
        target = plan.columns.get(column) or (OWN_TARGETS.get(column) if plan.strict else None) or Target.metadata
        told = uncell(cell) if plan.exported and isinstance(cell, str) else cell
        value = cells.parse_cell(told) if plan.flat and target in LISTED else told
        if target is Target.ignore or (cells.is_absent(value, flat=plan.flat) and target is not Target.question):
            continue
        if target is Target.metadata:
            metadata |= to_metadata(column, value, strict=plan.flat or plan.strict)
        else:
            _put(item, target, column, value, flat=plan.flat)
    if plan.layout is Layout.a_okvqa and "answer" not in item:
        answer = find_right_choice(values)
        item |= {} if answer is None else {"answer": answer}
    if "images" not in item and values.get(KEY_COLUMN) is not None:
        item["images"] = [values[KEY_COLUMN]]  # rows keyed by the name of their image, as in ACT-X
    _take_turns(item, metadata)
    if plan.answer_fields and plan.layout is Layout.chat:
        _take_fields(plan, item)
    _fill_defaults(plan, item)
    if metadata:
        item["metadata"] = metadata
    return item


def _put(item: dict[str, Any], target: Target, column: str, value: Any, *, flat: bool) -> None:
    """Put the value of a cell into an item. Raises `Invalid`."""
    if target in ORDERED:
        item[target.value] = ORDERED[target](value, column)
    elif target in MULTI_VALUED:
        item.setdefault(PROMPT_FIELDS[target], []).extend(cells.to_list(value, flat=flat))
    elif target is Target.field:
        item.setdefault("fields", {})[column] = cells.to_text(value, flat=False)
    elif not is_missing(value):
        item[target.value] = to_prompt_value(target, value, flat=flat)


def _take_turns(item: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Replace the conversation of an item, where it has one, by its parts and its answer. Raises `Invalid`."""
    turns: conversations.Turns | None = item.pop(Target.conversation.value, None)
    if turns is None:
        return
    item["parts"] = conversations.place_images(turns.asked, item.pop("images", []))
    if turns.answer is not None:
        item.setdefault("answer", turns.answer)
    if turns.system is not None:
        metadata.setdefault("system", turns.system)


def _take_fields(plan: ImportPlan, item: dict[str, Any]) -> None:
    """Take the gold values and the reference from the answer of a conversation, a JSON object. Raises `Invalid`."""
    text = item.pop("answer", None)
    if text is None:
        return
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise Invalid(
            _("answer: it must be a JSON object with the fields %(names)s.", names=", ".join(plan.answer_fields)),
            field="answer",
        )
    rationale = found.pop(plan.rationale, None)
    item["fields"] = found
    if isinstance(rationale, str) and rationale.strip():
        item.setdefault("references", []).append(rationale)


def refuse_unknown(values: Mapping[str, Any]) -> None:
    """Raise `Invalid` for a column that is none of our fields."""
    unknown = next((column for column in values if column not in OWN_FIELDS), None)
    if unknown is not None:
        raise Invalid(
            _("%(unknown)s: there is no such field: put your own fields under metadata.", unknown=unknown[:60]),
            field=unknown[:200],
        )


def _fill_defaults(plan: ImportPlan, item: dict[str, Any]) -> None:
    if item.get("split") is None:
        item.pop("split", None)
        if not plan.places_by_image:  # which `place_by_image` does once the images are known
            item["split"] = plan.split.value
    if plan.question and not item.get("question") and "parts" not in item:
        item["question"] = plan.question


def to_prompt_value(target: Target, value: Any, *, flat: bool = False) -> Any:
    """Convert a value for a prompt: numbers to text, several answers to the most frequent one, splits to our names."""
    if target is Target.answer and isinstance(value, list) and value:
        given = [one.get("answer") if isinstance(one, dict) else one for one in value]
        most = Counter(one for one in given if isinstance(one, str)).most_common(1)
        value = most[0][0] if most else value
    if target is Target.priority:
        return value
    if target is Target.external_id:
        check_exact(value, flat=flat)
    value = cells.to_text(value, flat=flat and target is not Target.question)
    if target is Target.split_name and isinstance(value, str):
        return SPLIT_ALIASES.get(value.strip().lower(), value.strip().lower())
    return value


def check_exact(value: Any, *, flat: bool) -> None:
    """Raise `Invalid` for an id that may not be what was typed in: a number that was rounded, in Excel also a date.

    A `flat` table holds texts; a sheet of Excel keeps what is shown otherwise than it was typed as numbers and dates.
    """
    if flat and isinstance(value, float | date | time):
        kept = f"number {value:g}" if isinstance(value, float) else f"date {value.isoformat()}"
        raise Invalid(
            _(
                "external_id: Excel keeps this id as the %(kept)s, not as it was typed: format the column as text, "
                "and enter the ids again.",
                kept=kept,
            ),
            field="external_id",
        )
    if isinstance(value, float) and abs(value) > LARGEST_EXACT:
        raise Invalid(
            _(
                "external_id: the number %(value)s has more digits than are kept of it: store ids as texts.",
                value=f"{value:g}",
            ),
            field="external_id",
        )


def find_right_choice(values: Mapping[str, Any]) -> Any:
    """The answer of an A-OKVQA row: the right choice, or the most frequent answer."""
    choices, index = values.get("choices"), values.get("correct_choice_idx")
    if isinstance(choices, list) and isinstance(index, int) and 0 <= index < len(choices):
        return choices[index]
    said = values.get("direct_answers")
    return to_prompt_value(Target.answer, said) if isinstance(said, list) and said else None


def to_metadata(column: str, value: Any, *, strict: bool) -> dict[str, Any]:
    """Keep a value as metadata; an object in a column named `metadata` is unpacked. Raises `Invalid`.

    `strict`: a column of this name must hold objects.
    """
    if measure_depth(value) > MAX_DEPTH:
        raise Invalid(_("%(column)s: it is nested too deeply.", column=column[:60]), field=column[:200])
    if column == "metadata" and strict and not isinstance(value, dict):
        raise Invalid(_("metadata: this is not a valid JSON object."), field="metadata")
    plain = cells.to_json_value(value, column)
    return plain if column == "metadata" and isinstance(plain, dict) else {column: plain}
