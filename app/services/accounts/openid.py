"""Signing in with an OpenID Connect provider: code flow with PKCE, and what people get by their groups there."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import Conflict, DomainError, Forbidden, Invalid, Unauthenticated, Unavailable
from app.models import Project, ProviderIdentity, Role, User
from app.models.users import MAX_SUBJECT
from app.services.accounts import users
from app.services.accounts.openid_providers import SECONDS, Provider, Rule, discover, down, get_json
from app.services.kernel import audit
from app.services.kernel.actors import SYSTEM
from app.settings import get_settings
from illume.phrases import _

log = logging.getLogger(__name__)
START_SECONDS = 600
"""How long a person may take at the provider."""
MAX_COOKIE = 3800
"""How many bytes a sign-in that has begun may take: browsers keep no cookie over 4096, its name and rules included."""
LEEWAY = 60
"""By how many seconds the provider's clock may differ from ours."""
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
"""How tokens may be signed: with keys whose private half only the provider has."""
STRENGTH = (Role.viewer, Role.critic, Role.reviewer, Role.admin)
START_AGAIN = _("This sign-in has expired or was begun in another browser. Start again.")
NO_ACCOUNT = _("You have no account here yet. Ask an admin to add you, with the email address that you sign in with.")


@dataclass(frozen=True, slots=True)
class Start:
    """A sign-in that a browser has begun; its cookie keeps it."""

    provider: str
    state: str
    nonce: str
    verifier: str
    next: str
    at: int


@dataclass(frozen=True, slots=True)
class Person:
    """Who signed in at a provider, as it says. `email` is empty unless the provider vouches for it."""

    subject: str
    email: str
    name: str
    groups: frozenset[str]


def redirect_uri(provider: Provider) -> str:
    """Where the provider sends people back to; it has to be registered there."""
    return f"{get_settings().address}/sign-in/from/{provider.name}"


# To the provider


def begin(provider: Provider, to: str, now: datetime) -> tuple[str, str]:
    """Begin a sign-in that leads to the path `to`. Returns the provider's address and the cookie.

    A path that is too long for a cookie is forgotten. Raises `Unavailable`.
    """
    start = Start(
        provider.name,
        secrets.token_urlsafe(32),
        secrets.token_urlsafe(32),
        secrets.token_urlsafe(48),
        to,
        int(now.timestamp()),
    )
    cookie = sealed(start)
    if len(cookie) > MAX_COOKIE:
        cookie = sealed(replace(start, next="/"))
    with client(provider) as asking:
        url, _state = asking.create_authorization_url(
            discover(provider)["authorization_endpoint"],
            state=start.state,
            code_verifier=start.verifier,
            nonce=start.nonce,
        )
    return url, cookie


def client(provider: Provider) -> OAuth2Client:
    """What asks the provider in our name."""
    return OAuth2Client(
        client_id=provider.client_id,
        client_secret=provider.client_secret or None,
        scope=provider.scopes,
        redirect_uri=redirect_uri(provider),
        code_challenge_method="S256",
        timeout=SECONDS,
    )


def sealed(start: Start) -> str:
    """The cookie of a sign-in: what began, signed with the installation's key."""
    text = urlsafe_b64encode(json.dumps(asdict(start)).encode()).decode()
    return f"{text}.{signature(text)}"


def opened(cookie: str, now: datetime) -> Start | None:
    """The sign-in that a cookie keeps; None where it is not ours, or began too long before `now`."""
    text, _dot, signed = cookie.partition(".")
    if not hmac.compare_digest(signed.encode(), signature(text).encode()):
        return None
    start = Start(**json.loads(urlsafe_b64decode(text)))
    return start if 0 <= int(now.timestamp()) - start.at <= START_SECONDS else None


def signature(text: str) -> str:
    """Sign a sign-in that has begun."""
    return hmac.new(get_settings().secret_key.encode(), f"openid {text}".encode(), hashlib.sha256).hexdigest()


# And back


def finish(provider: Provider, cookie: str, answer: Mapping[str, str], now: datetime) -> tuple[Person, str]:
    """Who has signed in, by the answer with which the provider sent them back, and the path to lead them to.

    Raises `Unauthenticated` where anything in it is not as it was begun, and `Unavailable`. Nothing of the answer is
    logged but the kind of error.
    """
    start = opened(cookie, now)
    if start is None or start.provider != provider.name:
        raise Unauthenticated(START_AGAIN)
    if not hmac.compare_digest(answer.get("state", "").encode(), start.state.encode()):
        raise refused(provider, "state")
    if answer.get("iss", provider.issuer) != provider.issuer:
        raise refused(provider, "iss")
    if "error" in answer or not answer.get("code"):
        raise Unauthenticated(_("You were not signed in at %(provider)s. Start again.", provider=provider.label))
    metadata = discover(provider)
    tokens = redeem(provider, metadata["token_endpoint"], answer["code"], start.verifier)
    claims = verify(provider, get_json(provider, metadata["jwks_uri"]), tokens, start.nonce)
    return person_of(provider, with_user_info(provider, metadata, claims, tokens)), start.next


def refused(provider: Provider, reason: str) -> Unauthenticated:
    """That an answer is not what a provider would send for a sign-in that began here; the log says why."""
    log.warning("A sign-in with %s was refused: %s", provider.name, reason)
    return Unauthenticated(
        _(
            "The answer of %(provider)s could not be verified, so you are not signed in. Start again.",
            provider=provider.label,
        )
    )


def redeem(provider: Provider, url: str, code: str, verifier: str) -> dict[str, Any]:
    """The tokens for a code. Raises `Unauthenticated`, `Unavailable`."""
    try:
        with client(provider) as asking:
            return dict(asking.fetch_token(url, code=code, code_verifier=verifier))
    except AuthlibBaseError as error:
        raise refused(provider, "code") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise down(provider) from error


def verify(provider: Provider, keys: dict[str, Any], tokens: Mapping[str, Any], nonce: str) -> dict[str, Any]:
    """The claims of the ID token: signed by the provider, for us, for this sign-in, now. Raises `Unauthenticated`."""
    try:
        token = jwt.decode(str(tokens.get("id_token", "")), KeySet.import_key_set(keys), algorithms=ALGORITHMS)  # type: ignore[arg-type]
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": provider.issuer},
                "aud": {"essential": True, "value": provider.client_id},
            },
            params={
                "nonce": nonce,
                "client_id": provider.client_id,
                "access_token": tokens.get("access_token"),
            },
        )
        claims.validate(leeway=LEEWAY)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise refused(provider, type(error).__name__) from error
    return dict(claims)


def with_user_info(
    provider: Provider, metadata: Mapping[str, Any], claims: dict[str, Any], tokens: Mapping[str, Any]
) -> dict[str, Any]:
    """The claims, and what is missing in the ID token from the provider's user info. Raises `Unauthenticated`."""
    url, token = metadata.get("userinfo_endpoint"), tokens.get("access_token")
    needed = {"email", *([provider.groups_claim] if provider.groups else [])}
    if needed <= set(claims) or not isinstance(url, str) or not isinstance(token, str):
        return claims
    found = get_json(provider, url, token=token)
    if found.get("sub") != claims["sub"]:
        raise refused(provider, "sub")
    return {**found, **claims}


def person_of(provider: Provider, claims: Mapping[str, Any]) -> Person:
    """Who the claims are about. Raises `Unauthenticated`."""
    subject, email, name = (claims.get(key) for key in ("sub", "email", "name"))
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or "\0" in subject:
        raise refused(provider, "sub")
    vouched = provider.trust_emails or claims.get("email_verified") is True
    groups = claims.get(provider.groups_claim)
    listed = groups if isinstance(groups, list) else [groups]
    return Person(
        subject=subject,
        email=email if isinstance(email, str) and vouched else "",
        name=name if isinstance(name, str) else "",
        groups=frozenset(group for group in listed if isinstance(group, str)),
    )


# Who that is here


def sign_in(session: Session, provider: Provider, person: Person) -> User:
    """The account of a person who has signed in at a provider, with the roles that their groups give them.

    It is the one that they signed in to before; else that with their e-mail address, if the provider vouches for it;
    else a new one, if the provider's settings say so. Raises `Forbidden`, and `Conflict` if the same person signs in
    for the first time in two browsers at once.
    """
    rules = [rule for rule in provider.groups if rule.group in person.groups]
    if provider.groups and not rules:
        log.warning("A sign-in with %s was refused: no group", provider.name)
        raise Forbidden(
            _(
                "Your account at %(provider)s is in no group that may use Illume. Ask whoever runs Illume to add you.",
                provider=provider.label,
            )
        )
    identity = session.scalar(
        select(ProviderIdentity).where(
            ProviderIdentity.issuer == provider.issuer, ProviderIdentity.subject == person.subject
        )
    )
    user = session.get(User, identity.user_id) if identity is not None else None
    if user is None:
        user = users.find_user(session, person.email) if person.email else None
        user = user or new_account(session, provider, person, rules)
        session.add(ProviderIdentity(issuer=provider.issuer, subject=person.subject, user_id=user.id))
        try:
            session.flush()
        except IntegrityError as error:
            raise Conflict(_("You have just signed in for the first time in another window. Start again.")) from error
        audit.record(session, SYSTEM, "user.identity", f"user:{user.id}", provider=provider.name)
    if user.disabled_at is not None:
        raise Forbidden(_("Your account here is disabled. Ask an admin to enable it again."))
    apply_rules(session, provider, user, rules)
    return user


def new_account(session: Session, provider: Provider, person: Person, rules: list[Rule]) -> User:
    """An account for somebody who signs in for the first time. Raises `Forbidden`."""
    if not provider.new_accounts:
        raise Forbidden(NO_ACCOUNT)
    if not person.email:
        raise Forbidden(
            _(
                "%(provider)s does not confirm your email address, so no account can be made for you.",
                provider=provider.label,
            )
        )
    role = installation_role(rules) or provider.role
    try:
        user = users.add_user(session, SYSTEM, email=person.email, role=role)
    except Invalid as error:
        raise Forbidden(_("No account can be made for your email address: %(why)s", why=error.detail)) from error
    try:
        user.name = users.checked_name(person.name)
    except Invalid:
        user.name = ""  # they can choose one themselves
    return user


def installation_role(rules: list[Rule]) -> Role | None:
    """The strongest role that rules give in the installation; an admin of some projects is a reviewer elsewhere."""
    found = [Role.reviewer if rule.role is Role.admin and rule.projects else rule.role for rule in rules]
    return max(found, key=STRENGTH.index, default=None)


def project_roles(rules: list[Rule]) -> dict[str, Role]:
    """The strongest role that rules give in each project that they name."""
    found: dict[str, Role] = {}
    for rule in rules:
        for slug in rule.projects:
            found[slug] = max(rule.role, found.get(slug, rule.role), key=STRENGTH.index)
    return found


def apply_rules(session: Session, provider: Provider, user: User, rules: list[Rule]) -> None:
    """Give a person what their groups give them, and take what they give no more.

    Where no rule of the provider names a project, memberships are left to admins; where none makes admins of the
    installation, those who are admins stay so, and so does the last one. Projects that do not exist (yet) are skipped.
    """
    role = installation_role(rules)
    makes_admins = installation_role(list(provider.groups)) is Role.admin
    if role is not None and user.role is not role and (makes_admins or user.role is not Role.admin):
        try:
            users.set_role(session, SYSTEM, user.id, role, in_projects=False)
        except Conflict:  # somebody has to be able to put things right
            log.warning("Person %s stays an admin, whatever their groups at %s: the last one", user.id, provider.name)
    if any(rule.projects for rule in provider.groups):
        wanted = project_roles(rules)
        there = set(session.scalars(select(Project.slug).where(Project.slug.in_(wanted))))
        wanted = {slug: role for slug, role in wanted.items() if slug in there}
        if wanted != users.list_project_roles(session, [user.id])[user.id]:
            users.set_project_roles(session, SYSTEM, user, wanted)


def sign_out_url(provider: Provider) -> str:
    """Where one signs out at the provider itself; empty where it has no such page or does not answer."""
    try:
        url = discover(provider).get("end_session_endpoint")
    except (DomainError, Unavailable):
        return ""
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        return ""
    query = {"client_id": provider.client_id, "post_logout_redirect_uri": f"{get_settings().address}/sign-in"}
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
