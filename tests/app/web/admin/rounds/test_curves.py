"""The curves of a round's page."""

from __future__ import annotations

from typing import Any

from app.models import RoundEvent
from app.web.admin.rounds.rounds import loss_chart, preference_charts


def steps(*rows: dict[str, Any]) -> list[RoundEvent]:
    return [
        RoundEvent(round_id=1, position=number, kind="step", data={"step": number, "loss": 1.0, **row})
        for number, row in enumerate(rows, start=1)
    ]


def test_a_round_of_picks_alone_compares_nothing() -> None:
    events = steps({"answer_loss": 0.5, "rationale_loss": None}, {"answer_loss": 0.4, "rationale_loss": 0.3})
    loss = loss_chart(events)
    assert loss is not None
    assert [one.name for one in loss.series] == ["loss", "answers", "explanations"]
    assert preference_charts(events) == ()


def test_what_is_compared_has_charts_of_its_own() -> None:
    one = {"preference_loss": 2.0, "accepted_logprob": -2.0, "rejected_logprob": -1.5, "margin": -0.5}
    events = steps(one | {"preference_accuracy": 0.25, "blank_accuracy": 0.5}, one | {"preference_accuracy": 1.0})
    loss = loss_chart(events)
    assert loss is not None
    assert [one.name for one in loss.series] == ["loss", "rejections"]
    likely, right = preference_charts(events)
    assert [one.name for one in likely.series] == ["accepted", "rejected", "difference"]
    assert [one.name for one in right.series] == ["with the pictures", "with blank pictures"]
    assert [row.x for row in right.rows] == [1.0, 2.0]
