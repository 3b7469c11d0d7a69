"""How pages name states and kinds, and the tone in which they show them."""

from __future__ import annotations

from collections.abc import Mapping

from app.models import CandidateSetState, PromptState, Role, Round, RoundState, RoundTrigger, VerdictKind
from app.services.read_models.critic_day import RunningRound
from app.web.rendering import duration, percent
from illume.evaluation.activation import FEWEST_PROMPTS, Outcome
from illume.phrases import _, pgettext
from illume.pictures import Change

KIND_WORDS = {
    VerdictKind.picked: pgettext("verdict", "picked"),
    VerdictKind.none_fit: pgettext("verdict", "none fits"),
    VerdictKind.skipped: pgettext("verdict", "skipped"),
    VerdictKind.flagged: pgettext("verdict", "flagged"),
}
KIND_TONES = {
    VerdictKind.picked: "good",
    VerdictKind.none_fit: "",
    VerdictKind.skipped: "warn",
    VerdictKind.flagged: "bad",
}
STATE_WORDS = {
    PromptState.waiting: pgettext("state of a prompt", "waiting"),
    PromptState.ready: pgettext("state of a prompt", "ready"),
    PromptState.judged: pgettext("state of a prompt", "judged"),
    PromptState.held: pgettext("state of a prompt", "on hold"),
    PromptState.retired: pgettext("state of a prompt", "archived"),
}
SET_WORDS = {
    CandidateSetState.sampling: pgettext("state of explanations", "being written"),
    CandidateSetState.ready: pgettext("state of explanations", "ready"),
    CandidateSetState.judged: pgettext("state of explanations", "judged"),
    CandidateSetState.replaced: pgettext("state of explanations", "replaced"),
    CandidateSetState.failed: pgettext("state of explanations", "failed"),
}
ROUND_WORDS = {
    RoundState.queued: pgettext("state of a training round", "queued"),
    RoundState.preparing: pgettext("state of a training round", "preparing"),
    RoundState.training: pgettext("state of a training round", "training"),
    RoundState.evaluating: pgettext("state of a training round", "evaluating"),
    RoundState.cancelling: pgettext("state of a training round", "cancelling"),
    RoundState.succeeded: pgettext("state of a training round", "succeeded"),
    RoundState.failed: pgettext("state of a training round", "failed"),
    RoundState.cancelled: pgettext("state of a training round", "cancelled"),
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
    Change.turned: _("turned upright"),
    Change.profile: _("converted to sRGB"),
    Change.colours: _("converted to RGB"),
    Change.depth: _("scaled to 8 bits a channel"),
    Change.flattened: _("transparency laid onto white"),
    Change.first_frame: _("first frame of an animation"),
    Change.first_page: _("first of several pages"),
    Change.scaled_down: _("scaled down"),
    Change.recoded: _("stored in another format"),
}
TRIGGER_WORDS = {
    RoundTrigger.auto: _("Started automatically"),
    RoundTrigger.manual: _("Started by an admin"),
    RoundTrigger.rerun: _("Rerun from a snapshot"),
}
SUBJECT_WORDS = {
    "comparison": pgettext("audit log", "comparison"),
    "critic": pgettext("audit log", "critic"),
    "engine": pgettext("audit log", "model server"),
    "gold": pgettext("audit log", "check question"),
    "image": pgettext("audit log", "image"),
    "import": pgettext("audit log", "import"),
    "link": pgettext("audit log", "link"),
    "machine_critic": pgettext("audit log", "machine critic"),
    "person": pgettext("audit log", "person"),
    "policy": pgettext("audit log", "policy"),
    "project": pgettext("audit log", "project"),
    "prompt": pgettext("audit log", "prompt"),
    "publication": pgettext("audit log", "upload"),
    "review": pgettext("audit log", "review"),
    "round": pgettext("audit log", "training round"),
    "snapshot": pgettext("audit log", "snapshot"),
    "token": pgettext("audit log", "token"),
    "user": pgettext("audit log", "user"),
    "verdict": pgettext("audit log", "verdict"),
    "version": pgettext("audit log", "version"),
    "webhook": pgettext("audit log", "webhook"),
}
"""What the audit log is about."""
ACTION_WORDS = {
    "comparison.close": _("closed a comparison"),
    "comparison.start": _("started a comparison"),
    "critic.pause": _("paused a critic"),
    "critic.resume": _("resumed a critic"),
    "critic.target": _("set a daily target"),
    "engine.add": _("added a model server"),
    "engine.change": _("changed a model server"),
    "engine.remove": _("removed a model server"),
    "gold.add": _("added a check question"),
    "gold.remove": _("removed a check question"),
    "image.erase": _("erased an image"),
    "import.add": _("uploaded an import"),
    "import.discard": _("discarded an import"),
    "link.invitation": _("created an invitation link"),
    "link.password": _("created a password link"),
    "machine_critic.cancel": _("cancelled the training of a machine critic"),
    "machine_critic.cancelled": _("ended a cancelled training of a machine critic"),
    "machine_critic.failed": _("ended a failed training of a machine critic"),
    "machine_critic.start": _("started training a machine critic"),
    "machine_critic.succeeded": _("trained a machine critic"),
    "person.erase": _("erased a person"),
    "policy.add": _("added a policy or a version of it"),
    "project.add": _("created a project"),
    "project.dismiss_checklist": _("dismissed the first steps"),
    "project.erase": _("erased a project"),
    "project.resume": _("tried a project's model again"),
    "project.settings": _("changed settings"),
    "prompt.change": _("changed a prompt"),
    "publication.add": _("had something uploaded to the Hub"),
    "review.accept": _("accepted a late verdict"),
    "review.ask": _("sent a prompt to review"),
    "review.decide": _("decided a review"),
    "review.dismiss": _("dismissed a review"),
    "review.retire": _("archived a prompt in review"),
    "review.send_back": _("sent a verdict back"),
    "round.cancel": _("cancelled a training round"),
    "round.cancelled": _("ended a cancelled training round"),
    "round.failed": _("ended a failed training round"),
    "round.retry": _("resumed a training round"),
    "round.start": _("started a training round"),
    "round.succeeded": _("completed a training round"),
    "snapshot.take": _("took a snapshot"),
    "token.add": _("created a token"),
    "token.revoke": _("revoked a token"),
    "user.add": _("added a user"),
    "user.disable": _("disabled a user"),
    "user.enable": _("re-enabled a user"),
    "user.identity": _("connected an account with a provider"),
    "user.name": _("changed a name"),
    "user.password": _("changed a password"),
    "user.projects": _("changed a user's projects"),
    "user.role": _("changed a user's role"),
    "user.sign_out": _("signed browsers out"),
    "verdict.change": _("changed a verdict"),
    "version.activate": _("activated a version"),
    "webhook.add": _("added a webhook"),
    "webhook.change": _("changed a webhook"),
    "webhook.remove": _("removed a webhook"),
    "webhook.renew": _("renewed a webhook's secret"),
}
"""What somebody did, by the action in the audit log."""
POLICY_STATUS_WORDS: Mapping[str, str] = {
    "default": pgettext("status of a category", "default"),
    "allowed": pgettext("status of a category", "allowed"),
    "strict": pgettext("status of a category", "strict"),
}
POLICY_STATUS_TONES: Mapping[str, str] = {"default": "", "allowed": "good", "strict": "warn"}
VARIANT_WORDS: Mapping[str, str] = {
    "own_allowed": _("The picture's own category allowed: the right rating changes."),
    "own_strict": _("The picture's own category strict."),
    "others_allowed": _("All other categories allowed: the right rating stays."),
    "others_strict": _("All other categories strict."),
}
"""How a policy can be changed for a prompt, by the names of `illume.fields.variants`."""
METRIC_WORDS = {
    "rouge_l": _("ROUGE-L of sampled explanations"),
    "heldout": _("Log-likelihood of held-out explanations"),
    "balanced_accuracy": _("Balanced accuracy of ratings"),
}
ROLE_WORDS = {
    Role.admin: pgettext("role", "admin"),
    Role.reviewer: pgettext("role", "reviewer"),
    Role.critic: pgettext("role", "critic"),
    Role.viewer: pgettext("role", "viewer"),
}
LABEL_WORDS: Mapping[str, str] = {
    str(label): label
    for label in (
        _("Not sure"),
        _("Too hard to see"),
        _("Not my field"),
        _("The image is broken"),
        _("The question makes no sense"),
        _("The answer is wrong"),
        _("Offensive"),
        _("contradicts the image"),
        _("does not support the answer"),
        _("incomplete"),
        _("badly written"),
    )
}
"""The reasons and tags that a project has by default. Its own ones are shown as they are."""
OUTCOME_WORDS: Mapping[Outcome, str] = {
    "better": pgettext("version", "better"),
    "worse": pgettext("version", "worse"),
    "no clear difference": _("no clear difference"),
    "too few to tell": _("too few to tell"),
}
OUTCOME_TONES: Mapping[Outcome, str] = {
    "better": "good",
    "worse": "bad",
    "no clear difference": "",
    "too few to tell": "warn",
}


def prompt_words(question: str) -> str:
    """What a prompt is called: its question, or that it has none."""
    return question or _("Images without a question")


def label_words(label: str) -> str:
    """How a reason or a tag is shown."""
    return LABEL_WORDS.get(label, label)


def outcome_words(outcome: Outcome, n: int) -> str:
    """The outcome of a comparison of versions; for too few prompts with their number `n`."""
    if outcome == "too few to tell":
        return _("too few to tell (%(number)s; at least %(fewest)s)", number=n, fewest=FEWEST_PROMPTS)
    return OUTCOME_WORDS[outcome]


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
        return _("waiting for a worker")
    if state is RoundState.preparing and running.progress.get("stage") == "snapshot":
        return _("preparing the snapshot (%(done)s)", done=percent(fraction or 0.0))
    if state is RoundState.preparing and running.progress.get("stage") == "waiting":
        return _("prepared, waiting for a model worker")
    words = ROUND_WORDS[state]
    if fraction is not None:
        words = _("%(state)s, %(done)s", state=words, done=percent(fraction))
    return _("%(state)s, about %(time)s left", state=words, time=duration(left)) if left else words
