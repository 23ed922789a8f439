"""A backend's two ways through a text agree: what decode steps went on with, a prefill of the same text goes on with.

One token begins each text, several texts share the slots, and every text is greedy: so this tries one-token prompts,
positions, rows that could be mixed up, and the keys that a prefill left behind. It runs both graphs once, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.backends.base import Backend, Sampling, Step
from server.errors import ModelError

logger = logging.getLogger(__name__)

ROUNDS = (range(4), range(4, 20))  # texts, by number; the second round only where the first goes wrong
STEPS = 2


def check(backend: Backend) -> None:
    """In 16 bits a near tie may fall the other way in another graph, so more than half of the texts have to agree.

    Raises: ModelError where they don't: the answers would be wrong.
    """
    slots, agreed, tried = backend.limits.slots, 0, 0
    for texts in ROUNDS:
        agreed += sum(agreeing(backend, texts[begin : begin + slots]) for begin in range(0, len(texts), slots))
        tried += len(texts)
        if 2 * agreed > tried:
            logger.info("self-check passed: prefill and decode agree on %d of %d texts", agreed, tried)
            return
    raise ModelError(
        f"prefill and decode disagree on {tried - agreed} of {tried} texts, so its answers would be wrong: export "
        "the model again, and if that does not help, report it with the output of `tokenclock-server check`"
    )


def agreeing(backend: Backend, numbers: Sequence[int]) -> int:
    """Of so many texts, decoded together, one a slot: how many go on as a prefill of them does."""
    limits = backend.limits
    texts = [[(7919 * (number + 1)) % limits.vocabulary] for number in numbers]
    for slot, text in enumerate(texts):
        text.append(prefilled(backend, slot, text).token_id)
    for _ in range(min(STEPS, limits.max_input_tokens - 1, limits.max_total_tokens - 2)):
        for slot, step in backend.decode().items():
            texts[slot].append(step.token_id)
    agreed = 0
    for slot, text in enumerate(texts):
        backend.release(slot)
        agreed += prefilled(backend, slot, text[:-1]).token_id == text[-1]
        backend.release(slot)
    return agreed


def prefilled(backend: Backend, slot: int, token_ids: list[int]) -> Step:
    while (step := backend.prefill(slot, token_ids, Sampling())) is None:
        pass
    return step
