"""What can go wrong with a model server, by what helps."""

from __future__ import annotations

from illume.errors import VlmError


class EngineError(VlmError):
    """A model server that did not do what was asked, with a reason a person can act on."""


class EngineAway(EngineError):
    """The server cannot be reached, is starting, or has too much to do: trying again later may help."""


class EngineSlow(EngineAway):
    """The server did not answer in time."""


class EngineRefused(EngineError):
    """The server refuses this request; others may well be answered. `status` is that of HTTP."""

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class PromptTooLong(EngineRefused):
    """The prompt does not fit the context that the server gives the model. Asking again is of no use."""


class KeyRefused(EngineRefused):
    """The server wants another key."""


class ModelMissing(EngineRefused):
    """The server has no model or adapter of the name that was asked for."""


class ServerChanged(EngineError):
    """The server runs something else than when it was probed: what it can do is not known any more."""


class WrongModel(EngineError):
    """Another model answered than the one that was asked."""
