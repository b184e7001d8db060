"""The whole model beside a group of ranks, and conversations that both have."""

from readers import Reader, planner_of, steady_clock, together
from talks import answered

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.parts import LoadReport
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.identities import identify
from llm_mlx_promptcache.models.loading import load_model

SYSTEM = Message("system", "You keep a lighthouse and answer in few words. " * 6)
TURNS = ("Is it lit?", "And now, at night?", "Who keeps it when you sleep?")


class Whole:
    """The whole model in this process, asked as a group is; `drafts` are off there."""

    def __init__(self, folder, disk, *, ahead=False):
        self._loaded = load_model(str(folder))
        found = identify(self._loaded, disk)
        self._identity = Identity(found.model, found.rows)
        self._disk, self._ahead = disk, ahead
        self.restart()

    def restart(self):
        cache = PromptCache("100MB", DiskStore(self._disk / "spans"))
        self.scheduler = scheduler_here(
            self._loaded,
            self._identity,
            cache,
            LoadReport("tiny", ahead=self._ahead),
            planner=planner_of(16),
            clock=steady_clock(),
        )

    def close(self):
        self.scheduler.settle(last=True)

    def ask(self, *requests, gone=None):
        readers = [
            Reader(one, after)
            for one, after in zip(requests, gone or [None] * len(requests), strict=True)
        ]
        together(self.scheduler, *readers)
        self.scheduler.settle()
        ahead = self.scheduler.ahead
        while ahead is not None and ahead.left:
            ahead.step()
        return [one.events[-2] for one in readers]


class Chat:
    """A conversation with the whole model and with a group: both say the same.

    Without `same_counts` they may have reused different things.
    """

    def __init__(self, whole, group, *begin, same_counts=True, **asks):
        self.whole, self.group = whole, group
        self.same = same if same_counts else same_ids
        self.messages = list(begin or (SYSTEM,))
        self.asks = {"max_tokens": 20, "drafts": False, **asks}
        self.before = 0  # tokens that the last turn left

    def say(self, *messages, **asks):
        """One turn: the group's answer, its ids and counts held against the whole model's."""
        self.messages += [Message("user", m) if isinstance(m, str) else m for m in messages]
        asked = GenerationRequest(tuple(self.messages), **{**self.asks, **asks})
        (right,), (answer,) = self.whole.ask(asked), self.group.ask(asked)
        self.same([right], [answer])
        self.messages.append(answered(answer))
        self.before = answer.usage.prompt + answer.usage.generated - 1
        return answer


def same_ids(right, answers):
    assert [one.ids for one in answers] == [one.ids for one in right]


def same(right, answers):
    same_ids(right, answers)
    assert counts(answers) == counts(right)


def counts(answers):
    return [(one.usage.prompt, one.usage.cached, one.usage.prefilled) for one in answers]
