"""Reuse: how much of a prompt's earlier turns was reused, and where and why some was not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ..chat.asked import short_digest

if TYPE_CHECKING:
    # Every front end imports this file; finding a change takes half of the chat room, which the
    # engine's process alone needs.
    from ..cache.explain import Reason
    from ..cache.memory.leases import Lease
    from ..chat.history import ChangeReason
    from .preparation import Prepared

    LossReason = ChangeReason | Literal["settings"] | Reason

ReuseState = Literal["new", "healthy", "lost", "off"]

_LOST: Final[dict[str, str]] = {
    "system": "the system prompt is not what it was",
    "tools": "the tools are not what they were",
    "arguments": "the template's arguments, thinking among them, are not what they were",
    "edited": "that message is not what it was",
    "removed": "messages that stood there are gone",
    "inserted": "it was put in front of an answer",
    "thinking": "an earlier answer stands there without its thinking",
    "rewritten": "the chat template writes it otherwise, now that more has been said",
    "model": "another model gave the answers so far",
    "settings": "the last answer had another cache_salt, other bits of keys and values, or another"
    " version of MLX",
    "evicted": "what had been computed is no longer kept",
}
# Changes that an application makes to its prompts, and could avoid.
_CALLERS = frozenset(["system", "tools", "arguments", "edited", "removed", "inserted"])
# Reasons why a cache keeps nothing of a request.
_OFF = frozenset(["off", "layers", "changed"])
# A cache's reasons for rows that were kept and are gone.
_GONE = frozenset(["cold", "diverged", "evicted", "whole", "namespace"])


class Reuse(NamedTuple):
    """The part of its conversation's last turn that a prompt reused.

    `state` is "healthy" where that was all of it, "lost" where `lost` tokens of it were not, "new"
    where no answer in the conversation says what it was asked with, "off" where nothing is kept.
    Where it was lost, `message` is the index of the message in which the prompt leaves the stored
    path, of this `role`; `detail` is the cache's reason. `warns` is a digest where the user is to
    be told, the same for all that go on from one answer.
    """

    state: ReuseState = "new"
    reason: LossReason | Literal[""] = ""
    message: int | None = None
    role: str = ""
    lost: int = 0
    detail: str = ""
    warns: str = ""

    def __str__(self) -> str:
        """One line for a user; no text of the conversation."""
        if self.state == "healthy":
            return "healthy: all that the last answer left was reused"
        if self.state != "lost":
            return self.detail
        why = _LOST.get(self.reason, self.detail)
        told = f"lost at messages[{self.message}] ({self.role}): {why}"
        return f"{told}; {self.lost} tokens of earlier turns are not reused"

    def plain(self) -> dict[str, Any]:
        """The state for programs, with place and reason where it is a loss."""
        if self.state != "lost":
            return {"state": self.state}
        names = ("state", "reason", "message", "role", "lost")
        return {name: getattr(self, name) for name in names}


def rows_digest(prepared: Prepared) -> str:
    """A digest of the place where a request's rows are kept."""
    return short_digest(prepared.namespace)


def reuse_of(prepared: Prepared, lease: Lease) -> Reuse:
    """The reuse that a lease means, beside what earlier answers of the conversation left.

    It depends on the conversation and its own namespace alone: it says nothing of what others
    store.
    """
    history, detail = prepared.history, str(lease.why)
    if lease.why.reason in _OFF:
        return Reuse("off", detail=detail)
    if history.latest is None:
        return Reuse("new", detail=detail)
    if lease.cached >= history.wanted:
        return Reuse("healthy", detail=detail)
    change = history.change
    reason: LossReason = _gone(prepared, lease.why.reason) if change is None else change.reason
    at = None if change is None else change.message
    if at is None:
        at = prepared.transcript.message_at(max(lease.cached, lease.matched))
    return Reuse(
        "lost",
        reason,
        at,
        prepared.request.messages[at].role,
        history.wanted - lease.cached,
        detail,
        history.latest.path if _is_told(prepared, reason, lease.why.reason) else "",
    )


def _gone(prepared: Prepared, why: Reason) -> LossReason:
    """The reason why rows of an unchanged path are missing."""
    latest = prepared.history.latest
    assert latest is not None
    if latest.rows != rows_digest(prepared):
        return "settings"
    return "evicted" if why in _GONE else why


def _is_told(prepared: Prepared, reason: LossReason, why: Reason) -> bool:
    """True if a loss is news to the user, who can do something about it."""
    history = prepared.history
    assert history.latest is not None
    if history.told:
        return False
    if reason == "evicted":
        # Rows evicted by another process, or cleared, may be gone on purpose.
        return why == "evicted"
    if history.change == ("edited", history.at):
        return False  # an answer that somebody corrected is all that is lost
    if reason == "removed" and 2 * len(prepared.transcript.ids) <= history.latest.length:
        return False  # that was the point of it
    return reason in _CALLERS
