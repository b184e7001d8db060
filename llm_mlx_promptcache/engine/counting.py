"""Token counts with a model's own tokenizer and template; its weights are not read."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import cache

from ..chat.checks import check_text
from ..chat.rendering import render, render_continued
from ..chat.transcript import Transcript
from ..models.chat_tokenizer import TemplateTokenizer
from ..models.references import spelled
from .preparation import arguments_of
from .request import GenerationRequest


class TokenCounter:
    """A counter for one model; safe from several threads."""

    def __init__(self, tokenizer: TemplateTokenizer) -> None:
        self._tokenizer = tokenizer
        # Fast tokenizers refuse to be borrowed by two threads at once.
        self._lock = threading.Lock()

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without a template around it; ValueError if it is not Unicode."""
        check_text("the text", text)
        with self._lock:
            return self._tokenizer.encode(text)[0]

    def count(self, request: GenerationRequest) -> int:
        """Tokens of the prompt that the request makes; earlier answers count as they are replayed.

        A part of a conversation counts too, since callers that shorten one ask for it: where the
        template refuses it, as the texts of its messages.
        """
        if not request.messages:
            return 0
        for index, message in enumerate(request.messages):
            check_text(f"messages[{index}].content", message.content)
        # Without weights the model's fingerprint is known only from its recorded answers.
        records = [m.generated for m in request.messages if m.generated is not None]
        fingerprint = records[-1].fingerprint if records else ""
        with self._lock:
            try:
                return len(self._rendered(request, fingerprint).ids)
            except ValueError:
                texts = [message.content for message in request.messages]
                return sum(len(self._tokenizer.encode(text)[0]) for text in texts)

    def _rendered(self, request: GenerationRequest, fingerprint: str) -> Transcript:
        make = render_continued if request.continue_final else render
        return make(
            request.messages,
            self._tokenizer,
            fingerprint=fingerprint,
            tools=request.tools,
            template_arguments=arguments_of(request, self._tokenizer.thinking_argument),
        )


def counter_for(reference: str) -> TokenCounter:
    """The counter of a model: "default", a folder, or a hub id; ModelLoadError."""
    return _counter_for(spelled(reference))


@cache
def _counter_for(reference: str) -> TokenCounter:
    loaded: Future[TokenCounter] = Future()

    def load() -> None:
        # A thread of its own: what touches MLX must be left properly, and a caller's can't be.
        from ..models.threads import leave_thread

        try:
            from ..models.loading import load_tokenizer, model_folder
            from ..models.progress import ProgressLine

            with ProgressLine() as line:
                folder = model_folder(reference, line)
            tokenizer = TemplateTokenizer(load_tokenizer(folder))
            loaded.set_result(TokenCounter(tokenizer))
        except BaseException as error:
            loaded.set_exception(error)
        leave_thread()

    thread = threading.Thread(target=load, name="mlx-tokenizer")
    thread.start()
    thread.join()
    return loaded.result()
