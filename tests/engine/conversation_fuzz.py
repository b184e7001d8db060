"""Random conversations over a random family, each answer beside a cold one of a model alone.

Used by test_conversations_fuzz.py. `python conversation_fuzz.py one SEED [COUNT [FAMILY...]]`
plays runs again, and `... ask` is the fresh process that a run asks now and then.
"""
# ruff: noqa: E402 - as a program it has to find the helpers of the other rooms first

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "cache"), str(HERE.parent)]

import conversations
from fuzz_runs import NAMES, Held, Run, base, difference, loaded

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.store import NullStore
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.kv_settings import KVSettings

# Log probabilities are differences of logits, so two of law 1's bounds; then a step for rounding.
PLAIN, ROUNDED = 2.5e-4, 2.5e-2
TEXTS = ("One?", "Why?", "And the lamp?", "The fog, " * 4, "of the capital and " * 9)
SYSTEMS = ("You keep a lighthouse.", "You keep a log. " * 8)


class Wrong(AssertionError):
    """A warm answer that is not the cold one."""


class Chat(NamedTuple):
    """A conversation: what was said, and how it is asked."""

    messages: tuple[Message, ...]
    kv: KVSettings | None = None
    tools: bool = False
    cache_salt: str = ""


class Fuzz:
    """One run: an engine with a cache, one without, and what was said so far."""

    def __init__(self, run: Run, folder: str, store: Path) -> None:
        self.run, self.folder, self.path = run, folder, store
        self.rng = random.Random(run.seed + 1)
        self.seen: Counter[str] = Counter()
        self.prompts = self.cached = 0
        self.cold_answers: dict[Any, Finished] = {}
        self.cold = Engine(
            lambda _: scheduler_here(
                loaded(run, folder, "cold"),
                Identity(run.identity, run.identity),
                PromptCache("1MB"),
            )
        )
        self.chats = [self.new_chat()]
        self.start()

    def start(self) -> None:
        """An engine and a cache as a new process has them, over the same folder."""
        run, folder = self.run, self.folder
        self.store = DiskStore(self.path, run.disk) if run.disk else NullStore()
        self.cache = PromptCache(run.memory, self.store)
        cache = self.cache
        self.engine = Engine(
            lambda _: scheduler_here(
                loaded(run, folder, "warm"), Identity(run.identity, run.identity), cache
            )
        )

    def new_chat(self) -> Chat:
        rng = self.rng
        kv = None
        if self.run.heads and rng.random() < 0.6:
            kv = KVSettings(rng.choice([4, 8]), 32, rng.choice([0, 40]))
        system = Message("system", rng.choice(SYSTEMS))
        salt = rng.choice(["", "", "", "somebody else"])
        return Chat((system,), kv, rng.random() < 0.25 and not kv, salt)

    def play(self) -> None:
        """All steps, and what must hold at the end."""
        steps = [
            (self.ask, 8),
            (self.retry, 2),
            (self.fork, 2),
            (self.edit, 2),
            (self.together, 3),
            (self.cancel, 3),
            (self.restart, 1.5),
            (self.squeeze, 1),
            (self.warm, 0.5),
            (self.begin, 1.5),
            (self.elsewhere, 0.12),
        ]
        calls, weights = zip(*steps, strict=True)
        try:
            for _ in range(self.run.steps):
                (step,) = self.rng.choices(calls, weights)
                self.seen[step.__name__] += 1
                step()
        finally:
            self.close()

    def close(self) -> None:
        self.engine.close()
        self.cold.close()
        for found in (self.cache.check(), self.checked_store()):
            if found:
                raise Wrong(f"{self.run}: {found}")

    def checked_store(self) -> list[str]:
        if not isinstance(self.store, DiskStore):
            return []
        found = self.store.check()
        held = sum(path.stat().st_size for path in self.store.spans_folder.glob("*.safetensors"))
        if (said := self.store.stats()["bytes"]) != held:
            found = [*found, f"the store counts {said} bytes and holds {held}"]
        self.store.close()
        return found

    # -- steps

    def request(self, chat: Chat, **more: Any) -> GenerationRequest:
        if chat.tools:
            more = {"tools": conversations.TOOLS, "tool_choice": "any", "max_calls": 2, **more}
        most = 160 if chat.tools else self.rng.randint(1, 12)
        asked = {
            "max_tokens": most,
            "kv": chat.kv,
            "cache_salt": chat.cache_salt,
            "logprobs": 2,
            "drafts": self.rng.random() < 0.5,
            **more,
        }
        return GenerationRequest(chat.messages, **asked)

    def asked(self, chat: Chat, **wish: Any) -> tuple[Chat, GenerationRequest]:
        """The chat with a question, or with the results of its calls, and the request for it."""
        last = chat.messages[-1]
        results = tuple(
            Message("tool", self.rng.choice(TEXTS), tool_call_id=call.id)
            for call in last.tool_calls
        )
        more = results or (Message("user", self.rng.choice(TEXTS)),)
        chat = chat._replace(messages=(*chat.messages, *more))
        return chat, self.request(chat, **({} if chat.tools else wish))

    def pick(self) -> int:
        at = self.rng.randrange(len(self.chats))
        if len(self.chats[at].messages) > 11:
            self.chats[at] = self.new_chat()
        return at

    def ask(self) -> None:
        at = self.pick()
        chat, request = self.asked(self.chats[at])
        self.chats[at] = self.answered(chat, self.checked(request))

    def retry(self) -> None:
        at = self.pick()
        chat, request = self.asked(self.chats[at])
        self.checked(request)
        self.chats[at] = self.answered(chat, self.checked(request))

    def fork(self) -> None:
        chat = self.chats[self.pick()]
        cut = self.rng.randint(1, len(chat.messages))
        while cut < len(chat.messages) and chat.messages[cut].role == "tool":
            cut += 1
        self.add(chat._replace(messages=chat.messages[:cut]))
        self.ask()

    def edit(self) -> None:
        """Another word in a message, answers included, whose record then no longer holds."""
        at = self.pick()
        messages = list(self.chats[at].messages)
        number = self.rng.randrange(len(messages))
        said = messages[number]
        messages[number] = dataclasses.replace(said, content=said.content + " indeed")
        self.chats[at] = self.chats[at]._replace(messages=tuple(messages))
        self.ask()

    def begin(self) -> None:
        self.add(self.new_chat())
        self.ask()

    def add(self, chat: Chat) -> None:
        self.chats = [*self.chats[-5:], chat]

    def together(self) -> None:
        """Several at once: some of one conversation, some of others, some the same."""
        # Long enough to be on their way together.
        wishes = [{"max_tokens": self.rng.randint(12, 30)} for _ in range(self.rng.randint(2, 4))]
        pairs = [self.asked(self.chats[self.pick()], **wish) for wish in wishes]
        if self.rng.random() < 0.3:
            pairs[-1] = pairs[0]
        with ThreadPoolExecutor(len(pairs)) as threads:
            answers = list(threads.map(lambda pair: self.answer(pair[1]), pairs))
        for (_, request), answer in zip(pairs, answers, strict=True):
            self.compare(request, answer)
        self.add(self.answered(pairs[0][0], answers[0]))

    def cancel(self) -> None:
        """Go away in mid-prefill or mid-answer, perhaps beside somebody who stays."""
        _, request = self.asked(self.chats[self.pick()])
        other = self.asked(self.chats[self.pick()])[1] if self.rng.random() < 0.5 else None
        left = self.engine.generate(dataclasses.replace(request, max_tokens=40))
        with ThreadPoolExecutor(1) as threads:
            beside = threads.submit(self.answer, other) if other else None
            for _ in range(self.rng.randint(0, 5)):
                next(left, None)
            left.close()
            if other and beside:
                self.compare(other, beside.result())
        self.ask()

    def restart(self) -> None:
        self.engine.close()
        for found in (self.cache.check(), self.checked_store()):
            if found:
                raise Wrong(f"{self.run}, at a restart: {found}")
        self.start()

    def squeeze(self) -> None:
        self.cache.trim_to(memory_bytes=self.rng.choice([0, 20_000, 200_000]))

    def warm(self) -> None:
        chat, _ = self.asked(self.new_chat())
        *_, last = self.engine.generate(self.request(chat, warm=True, logprobs=None))
        if not isinstance(last, Finished):
            raise Wrong(f"{self.run}: warming ended with {last!r}")

    def elsewhere(self) -> None:
        """The next turn in a real process of its own, over what this one wrote."""
        if not self.run.disk:
            return
        self.restart()
        at = self.pick()
        chat, request = self.asked(self.chats[at])
        words = [sys.executable, __file__, "ask", self.folder, str(self.path), json.dumps(self.run)]
        done = subprocess.run(
            words, input=json.dumps(wire.to_json(request)), capture_output=True, text=True
        )
        if done.returncode:
            raise Wrong(f"{self.run}: a fresh process ended with {done.returncode}: {done.stderr}")
        answer = wire.from_json(json.loads(done.stdout))
        self.compare(request, answer)
        self.chats[at] = self.answered(chat, answer)

    # -- answers

    def answer(self, request: GenerationRequest) -> Finished:
        *_, last = self.engine.generate(request)
        if not isinstance(last, Finished):
            raise Wrong(f"{self.run}: {last!r}")
        return last

    def checked(self, request: GenerationRequest) -> Finished:
        answer = self.answer(request)
        self.compare(request, answer)
        return answer

    def compare(self, request: GenerationRequest, answer: Finished) -> None:
        """Hold an answer beside the cold one: ids equal, or apart where rounding may part them."""
        usage = answer.usage
        if usage.cached + usage.prefilled != usage.prompt or usage.prefilled < 1:
            raise Wrong(f"{self.run}: {usage}")
        self.prompts += usage.prompt
        self.cached += usage.cached
        # Every other one is drafted, and no cold one: law 17 is held with law 1, in the same time.
        plain = dataclasses.replace(request, use_cache=False, drafts=False)
        key = json.dumps(wire.to_json(plain))
        if key not in self.cold_answers:
            *_, last = self.cold.generate(plain)
            self.cold_answers[key] = last
        why = difference(answer, self.cold_answers[key], ROUNDED if request.kv else PLAIN)
        if why:
            roles = " ".join(message.role for message in request.messages)
            raise Wrong(
                f"{self.run}: {why}; {usage}, from disk {answer.from_disk},"
                f" kv {request.kv}, {roles}"
            )

    def answered(self, chat: Chat, answer: Finished) -> Chat:
        """The chat with its answer; one that was cut in a call has none."""
        if answer.cut:
            return chat._replace(messages=chat.messages[:1])
        calls = answer.tool_calls
        said = Message("assistant", answer.text, answer.generated(), tool_calls=calls)
        return chat._replace(messages=(*chat.messages, said))


def play(run: Run, folder: str, store: Path) -> Fuzz:
    """One run; Wrong where an answer, a count or something held at the end is."""
    base(folder, "warm"), base(folder, "cold")
    before = Held.now()
    fuzz = Fuzz(run, folder, store)
    try:
        fuzz.play()
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{run}: {type(error).__name__}: {error}") from error
    counts = fuzz.seen, fuzz.prompts, fuzz.cached
    del fuzz.engine, fuzz.cold, fuzz.cache, fuzz.store
    fuzz.cold_answers.clear()
    after = Held.now()
    if after.threads > before.threads or after.descriptors > before.descriptors:
        raise Wrong(f"{run}: {before} before, {after} after")
    if after.memory > before.memory + 100_000:
        raise Wrong(f"{run}: {after.memory - before.memory} bytes of memory stay behind")
    fuzz.seen, fuzz.prompts, fuzz.cached = counts
    return fuzz


def main(what: str, *words: str) -> None:
    if what == "ask":
        folder, store, told = words
        run = Run(*json.loads(told))
        cache = PromptCache(run.memory, DiskStore(Path(store), run.disk))
        engine = Engine(
            lambda _: scheduler_here(
                loaded(run, folder, "warm"), Identity(run.identity, run.identity), cache
            )
        )
        *_, last = engine.generate(wire.from_json(json.loads(sys.stdin.read())))
        engine.close()
        print(json.dumps(wire.to_json(last)))
        return
    import tempfile

    with tempfile.TemporaryDirectory() as place, contextlib.suppress(BrokenPipeError):
        os.environ["LLM_MLX_CACHED_HOME"] = f"{place}/home"
        folder = str(conversations.write_model(Path(place) / "model"))
        for seed in range(int(words[0]), int(words[0]) + int(words[1] if words[1:] else 1)):
            run = Run.of(seed, words[2:] or NAMES)
            try:
                fuzz = play(run, folder, Path(place) / f"store-{seed}")
            except Wrong as wrong:
                print("WRONG", str(wrong)[:600], flush=True)
                continue
            print(run, f"{fuzz.cached} of {fuzz.prompts} cached", dict(fuzz.seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
