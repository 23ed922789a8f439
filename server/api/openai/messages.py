"""A conversation becomes a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.openai.schemas import Message
from server.api.tokenizing import off_the_loop
from server.api.validation import unsupported
from server.tokenizer import Tokenizer

#: What OpenAI's own messages bring along, with the values that say nothing.
NOT_SUPPORTED: dict[str, tuple[object, ...]] = dict.fromkeys(
    ("refusal", "tool_calls", "function_call", "audio", "annotations"), ([], "")
)


async def written(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Raises: ValidationError; TemplateError where the model has no chat template, or it refuses the messages."""
    for place, message in enumerate(messages):
        unsupported(message, NOT_SUPPORTED, f"messages.{place}.")
    plain = [as_dict(message) for message in messages]
    return await off_the_loop(lambda: tokenizer.chat(plain), sum(1 + len(message["content"]) for message in plain))


def as_dict(message: Message) -> dict[str, str]:
    """What chat templates read; the text parts of a content are put together, as TGI does."""
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    more = {"name": message.name, "tool_call_id": message.tool_call_id}
    return {"role": message.role, "content": text, **{name: value for name, value in more.items() if value is not None}}
