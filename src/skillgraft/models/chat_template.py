"""Chat templates: rendering, template arguments, and a trial that shows what a template does with a message.

That a template raises nothing says little: some drop the system message, some take lists of parts and render a plain
string as nothing. So each is tried once with three marked texts, and only what comes out again is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from skillgraft.errors import CheckpointError
from skillgraft.models.reasoning import opens_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = list[dict[str, Any]]

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})

_INSTRUCTION, _QUESTION, _ANSWER = "Follow instruction seven.", "What is question eight?", "Answer nine"


class ChatStyle(NamedTuple):
    """How a chat template takes messages.

    Attributes:
        system: it renders a system message; else the instruction stands before the first user message.
        parts: it takes a message as a list of parts, not as a string.
        reasoning: its prompt ends within a reasoning block that the model is to close.
    """

    system: bool
    parts: bool
    reasoning: bool


_arguments: ContextVar[Mapping[str, Any]] = ContextVar("chat_template_kwargs", default=NO_ARGUMENTS)
_styles: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ChatStyle]] = WeakKeyDictionary()


@contextmanager
def with_template_arguments(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Give `arguments` (a stage's `chat_template_kwargs`) to chat templates of tokenizers that are loaded meanwhile."""
    token = _arguments.set(arguments)
    try:
        yield
    finally:
        _arguments.reset(token)


def current_arguments() -> Mapping[str, Any]:
    """Return the arguments that `with_template_arguments` gives just now."""
    return _arguments.get()


def keep_template_arguments(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer just loaded keep the arguments of `with_template_arguments`."""
    tokenizer.chat_template_arguments = dict(_arguments.get())


def template_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the arguments that a tokenizer keeps."""
    return getattr(tokenizer, "chat_template_arguments", {})


def render(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, Any]], generate: bool = True) -> str:
    """Return the chat as text, with the beginning of an answer after it if `generate`."""
    return tokenizer.apply_chat_template(
        list(chat), tokenize=False, add_generation_prompt=generate, **template_arguments(tokenizer)
    )


def chat_style(tokenizer: PreTrainedTokenizerBase) -> ChatStyle:
    """Return how the tokenizer's chat template takes messages, tried once.

    Raises:
        CheckpointError: the template fails, or renders neither a string nor a list of parts as it is.
    """
    tried = (tokenizer.chat_template, template_arguments(tokenizer))
    if tokenizer not in _styles or _styles[tokenizer][0] != tried:
        _styles[tokenizer] = tried, _try(tokenizer)
    return _styles[tokenizer][1]


def message(style: ChatStyle, role: str, text: str) -> dict[str, Any]:
    """Return one message in the form that the template takes."""
    return {"role": role, "content": [{"type": "text", "text": text}] if style.parts else text}


def _try(tokenizer: PreTrainedTokenizerBase) -> ChatStyle:
    reason = "it renders a message's text neither from a string nor from a list of parts"
    for parts in (False, True):
        for system in (True, False):
            style = ChatStyle(system, parts, False)
            asked = _QUESTION if system else f"{_INSTRUCTION} {_QUESTION}"
            chat = [message(style, "system", _INSTRUCTION)] * system + [message(style, "user", asked)]
            try:
                prompt = render(tokenizer, chat)
                answered = render(tokenizer, [*chat, message(style, "assistant", _ANSWER)], generate=False)
            except Exception as error:  # a template is a program of the checkpoint: it can fail in any way
                if system is False and parts is False:
                    reason = f"it fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            printed = any(mark in prompt + answered for mark in ("'type': 'text'", "'role': "))  # as Python prints it
            if _INSTRUCTION in prompt and _QUESTION in prompt and _ANSWER in answered and not printed:
                return style._replace(reasoning=opens_reasoning(prompt))
    raise CheckpointError(
        f"{tokenizer.name_or_path}: the chat template cannot be used: {reason}; expected one that renders user and "
        "assistant messages: mend chat_template in the tokenizer's files, or delete it to prompt in plain text"
    )
