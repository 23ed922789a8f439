"""A conversation becomes a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.openai.schemas import Message
from server.api.served import off_the_loop
from server.tokenizer import Tokenizer


async def written(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Raises: TemplateError where the model has no chat template, or it refuses the messages."""
    plain = [as_dict(message) for message in messages]
    return await off_the_loop(lambda: tokenizer.chat(plain), sum(len(message["content"]) for message in plain))


def as_dict(message: Message) -> dict[str, str]:
    """What chat templates read; the text parts of a content are put together, as TGI does."""
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": text, **named}
