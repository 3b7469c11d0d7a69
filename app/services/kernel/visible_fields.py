"""Which fields of an answer need which right: the one place where that is decided, and where fields are left out.

A field that is not in the table is shown only to those who see everything, so that a new one reaches no critic before
somebody has decided. `docs/security.md` describes it; a test walks every field of every answer for every role.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import Any

from app.services.kernel.rights import SEES, Right


class AnswerShape(StrEnum):
    """A kind of answer whose fields depend on the reader's rights."""

    project = "project"
    prompt = "prompt"
    round = "round"
    stats = "stats"
    record = "record"
    policy = "policy"


def _fields(**needs: str) -> dict[str, Right | None]:
    """Field -> the right it needs: of names separated by spaces, under `all` those that every member may see."""
    return {name: None if need == "all" else Right(need) for need, names in needs.items() for name in names.split()}


# A field within an object, or within those of a list, is written with a dot; without a line of its own it follows its
# owner.
FIELDS: Mapping[AnswerShape, Mapping[str, Right | None]] = {
    AnswerShape.project: _fields(
        all="""
            id slug name created_at instructions instruction_examples blur_images overlap adaptive_overlap aggregation
            rejudge max_open lease_minutes skip_reasons flag_reasons shortcoming_tags practice_prompts round_every
            auto_rounds submit_on_pick judge_val answer_fields language
        """,
        sees_model="""
            active_version next_prompt pool_target pool_for_round base_model template temperatures top_k_share top_p
            max_new_tokens redraws engine epochs learning_rate batch_size lora_rank lora_alpha init objective
            gradient_checkpointing machine_critic machine_accepts show preference_beta pair_weight picture_weight
            anchor_weight unpaired_weight guard_per_rationale eval_prompts primary_metric max_answer_drop blind_gate
        """,
        # How many gold prompts and repeats there are would help to tell them from others.
        sees_others="weigh_reliability gold_share gold_minimum gold_accuracy repeat_share repeat_after",
    ),
    AnswerShape.prompt: _fields(
        all="id external_id split images question parts answer policy created_at",
        sees_references="references metadata fields",
        # A gold prompt comes whatever its priority, and is retired for everything else.
        sees_model="priority candidate_sets",
        sees_others="state has_accepted",
    ),
    AnswerShape.policy: _fields(
        all="id name number preamble categories sha256 text is_latest created_at",
        sees_model="prompts",
        sees_others="stale_verdicts",
    ),
    AnswerShape.round: _fields(
        all="id number state progress trigger created_at started_at finished_at",
        sees_model="snapshot parent version losses metrics decision left_out error",
    ),
    AnswerShape.stats: _fields(
        all="counts counts.prompts counts.rounds next_round next_round.round_every next_round.auto active_round",
        sees_model="active_version",
        # One's own verdict changes these by what others have said, and not at all if it was a gold prompt's.
        sees_others="""
            answers counts.train counts.with_accepted counts.verdicts counts.critics pace agreement alpha
            next_round.fresh pool complete
        """,
    ),
    AnswerShape.record: _fields(
        all="""
            schema_version id prompt external_id split images question parts answer candidate_set candidates
            candidates.id
            candidates.text candidates.picked candidates.tags critic shown kind rationale edited_from reason comment
            seconds exhaustive supersedes deleted created_at policy fields blind candidates.fields
        """,
        sees_references="references metadata gold",
        # The candidates of gold prompts are imported: the source would tell.
        sees_model="""
            answer_source source version version_number served_model candidates.temperature candidates.seed
            candidates.mean_logprob candidates.invalid candidates.scores
        """,
        sees_others="prompt_state slots critic_weight snapshots",
    ),
}


def may_see(shape: AnswerShape, field: str, rights: Set[Right]) -> bool:
    """Whether a member with these rights may see a field, which may be one of an object within."""
    fields = FIELDS[shape]
    if field not in fields:
        owner = field.rpartition(".")[0]
        decided_within = any(name.startswith(f"{owner}.") for name in fields)
        return rights >= SEES if not owner or decided_within else may_see(shape, owner, rights)
    need = fields[field]
    return need is None or need in rights


def shown_to(rights: Set[Right], shape: AnswerShape, body: Mapping[str, Any], *, within: str = "") -> dict[str, Any]:
    """`body` with the fields that a member with these rights may see."""
    if rights >= SEES and not within:
        return dict(body)
    return {
        key: _value_shown_to(rights, shape, value, f"{within}{key}")
        for key, value in body.items()
        if may_see(shape, f"{within}{key}", rights)
    }


def _value_shown_to(rights: Set[Right], shape: AnswerShape, value: Any, field: str) -> Any:
    if isinstance(value, Mapping):
        return shown_to(rights, shape, value, within=f"{field}.")
    if isinstance(value, list):
        return [_value_shown_to(rights, shape, one, field) for one in value]
    return value
