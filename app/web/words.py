"""How pages name states and kinds, and the tone in which they show them."""

from __future__ import annotations

from collections.abc import Mapping

from app.models import CandidateSetState, PromptState, Round, RoundState, RoundTrigger, VerdictKind
from app.services.read_models.critic_day import RunningRound
from app.web.rendering import duration
from illume.evaluation.activation import Outcome
from illume.pictures import Change

KIND_WORDS = {
    VerdictKind.picked: "picked",
    VerdictKind.none_fit: "none fits",
    VerdictKind.skipped: "skipped",
    VerdictKind.flagged: "flagged",
}
KIND_TONES = {
    VerdictKind.picked: "good",
    VerdictKind.none_fit: "",
    VerdictKind.skipped: "warn",
    VerdictKind.flagged: "bad",
}
STATE_WORDS = {
    PromptState.waiting: "waiting",
    PromptState.ready: "ready",
    PromptState.judged: "judged",
    PromptState.held: "on hold",
    PromptState.retired: "archived",
}
SET_WORDS = {
    CandidateSetState.sampling: "being written",
    CandidateSetState.ready: "ready",
    CandidateSetState.judged: "judged",
    CandidateSetState.replaced: "replaced",
    CandidateSetState.failed: "failed",
}
ROUND_TONES = {
    RoundState.succeeded: "good",
    RoundState.failed: "bad",
    RoundState.cancelled: "warn",
    RoundState.cancelling: "warn",
}
STATE_TONES = {
    PromptState.ready: "accent",
    PromptState.judged: "good",
    PromptState.held: "bad",
    PromptState.retired: "warn",
}
IMAGE_CHANGE_WORDS = {
    Change.turned: "turned upright",
    Change.profile: "converted to sRGB",
    Change.colours: "converted to RGB",
    Change.depth: "scaled to 8 bits a channel",
    Change.flattened: "transparency laid onto white",
    Change.first_frame: "first frame of an animation",
    Change.first_page: "first of several pages",
    Change.scaled_down: "scaled down",
    Change.recoded: "stored in another format",
}
TRIGGER_WORDS = {
    RoundTrigger.auto: "Started automatically",
    RoundTrigger.manual: "Started by an admin",
    RoundTrigger.rerun: "Rerun from a snapshot",
}
SUBJECT_WORDS = {
    "comparison": "comparison",
    "critic": "critic",
    "gold": "check question",
    "image": "image",
    "import": "import",
    "link": "link",
    "person": "person",
    "project": "project",
    "prompt": "prompt",
    "review": "review",
    "round": "training round",
    "snapshot": "snapshot",
    "token": "token",
    "user": "user",
    "verdict": "verdict",
    "version": "version",
    "webhook": "webhook",
}
"""What the audit log is about."""
ACTION_WORDS = {
    "comparison.close": "closed a comparison",
    "comparison.start": "started a comparison",
    "critic.pause": "paused a critic",
    "critic.resume": "resumed a critic",
    "critic.target": "set a daily target",
    "gold.add": "added a check question",
    "gold.remove": "removed a check question",
    "image.erase": "erased an image",
    "import.add": "uploaded an import",
    "import.discard": "discarded an import",
    "link.invitation": "created an invitation link",
    "link.password": "created a password link",
    "person.erase": "erased a person",
    "project.add": "created a project",
    "project.dismiss_checklist": "dismissed the first steps",
    "project.erase": "erased a project",
    "project.resume": "tried a project's model again",
    "project.settings": "changed settings",
    "prompt.change": "changed a prompt",
    "review.accept": "accepted a late verdict",
    "review.ask": "sent a prompt to review",
    "review.decide": "decided a review",
    "review.dismiss": "dismissed a review",
    "review.retire": "archived a prompt in review",
    "review.send_back": "sent a verdict back",
    "round.cancel": "cancelled a training round",
    "round.cancelled": "ended a cancelled training round",
    "round.failed": "ended a failed training round",
    "round.retry": "resumed a training round",
    "round.start": "started a training round",
    "round.succeeded": "completed a training round",
    "snapshot.take": "took a snapshot",
    "token.add": "created a token",
    "token.revoke": "revoked a token",
    "user.add": "added a user",
    "user.disable": "disabled a user",
    "user.enable": "re-enabled a user",
    "user.name": "changed a name",
    "user.password": "changed a password",
    "user.projects": "changed a user's projects",
    "user.role": "changed a user's role",
    "user.sign_out": "signed browsers out",
    "verdict.change": "changed a verdict",
    "version.activate": "activated a version",
    "webhook.add": "added a webhook",
    "webhook.change": "changed a webhook",
    "webhook.remove": "removed a webhook",
    "webhook.renew": "renewed a webhook's secret",
}
"""What somebody did, by the action in the audit log."""
METRIC_WORDS = {
    "rouge_l": "ROUGE-L of sampled explanations",
    "heldout": "Log-likelihood of held-out explanations",
}
OUTCOME_TONES: Mapping[Outcome, str] = {
    "better": "good",
    "worse": "bad",
    "no clear difference": "",
    "too few to tell": "warn",
}


def prompt_words(question: str) -> str:
    """What a prompt is called: its question, or that it has none."""
    return question or "Images without a question"


def image_url(sha256: str | None) -> str:
    """The address of an image; empty where there is none."""
    return f"/api/v1/images/{sha256}" if sha256 else ""


def round_tone(state: RoundState) -> str:
    """The tone of a round's state."""
    return ROUND_TONES.get(state, "accent")


def round_words(running: Round | RunningRound) -> str:
    """How far a round is, in words."""
    state = RoundState(running.state)
    fraction = running.progress.get("fraction")
    left = running.progress.get("eta_seconds")
    if state is RoundState.queued:
        return "waiting for a worker"
    if state is RoundState.preparing and running.progress.get("stage") == "snapshot":
        return f"preparing the snapshot ({round(100 * (fraction or 0.0))} %)"
    if state is RoundState.preparing and running.progress.get("stage") == "waiting":
        return "prepared, waiting for a model worker"
    words = [str(state.value)]
    if fraction is not None:
        words.append(f"{round(100 * fraction)} %")
    if left:
        words.append(f"about {duration(left)} left")
    return ", ".join(words)
