"""Claims and verdicts as statements that are sent together: each set of them is one transaction.

What is usual is done by them alone. Where they find that something is not, they change nothing, and the services that
have a session (`assignments.claim_in`, `verdicts.give`) do it or say what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from app.services.acceptance.overlap import ADAPT_SET
from app.services.acceptance.rules import REFRESH
from app.services.accounts.users import TOKEN_STILL_VALID
from app.services.judging.give_sql import RULE, giving
from app.services.judging.rows import CLOSE_IF_FULL

# The usual verdicts: of a set with one slot, whose verdict closes it; and of one with several, after which some more
# statements look at what others said. The project's rule is asked for again, in case it changed.
ALONE = f"a.purpose = 'work' AND s.slots = 1 AND NOT rule.adaptive AND {TOKEN_STILL_VALID}"
SHARED = f"""
a.purpose = 'work' AND (s.slots > 1 OR rule.adaptive) AND rule.adaptive = :adaptive
AND (r.settings ->> 'aggregation' <> 'any') = :counts_votes AND {TOKEN_STILL_VALID}
"""
GIVE_ALONE, GIVE_ALONE_UNDER_KEY = giving(ALONE), giving(ALONE, keeps_key=True)
GIVE_SHARED, GIVE_SHARED_UNDER_KEY = giving(SHARED), giving(SHARED, keeps_key=True)

# What comes after a verdict is about the set of the one that this very transaction gave; where it gave none, of none.
ITS = """
(
    SELECT v.WHAT FROM verdicts v
    WHERE v.assignment_id = CAST(:assignment AS bigint) AND v.current AND v.xid = pg_current_xact_id_if_assigned()
)
"""
ITS_SET, ITS_PROMPT, ITS_PROJECT = (ITS.replace("WHAT", one) for one in ("candidate_set_id", "prompt_id", "project_id"))
ADAPT = text(ADAPT_SET.replace(":set", ITS_SET))
CLOSE = text(CLOSE_IF_FULL.replace(":set", ITS_SET))
ITS_VOTES = REFRESH.replace("CAST(:prompts AS bigint[])", f"ARRAY{ITS_PROMPT}").replace(":project", ITS_PROJECT)
COUNT_VOTES = text(f"{ITS_VOTES} RETURNING p.fresh AS became_fresh")
MANNER = text(f"""
SELECT s.slots = 1 AND NOT rule.adaptive AS is_alone, rule.adaptive,
    r.settings ->> 'aggregation' <> 'any' AS counts_votes
FROM assignments a
JOIN candidate_sets s ON s.id = a.candidate_set_id
JOIN projects j ON j.id = a.project_id
JOIN setting_revisions r ON r.id = j.revision_id
{RULE}
WHERE a.id = CAST(:assignment AS bigint) AND a.critic_id = CAST(:critic AS bigint)
""")  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class Manner:
    """How a verdict on a set is dealt with: whether it is the only one, else by which of the project's rules."""

    is_alone: bool = True
    adaptive: bool = False
    counts_votes: bool = False
