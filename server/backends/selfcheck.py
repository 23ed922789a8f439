"""A backend's two ways through a text agree: what decode steps went on with, a prefill of the same text goes on with.

One token begins each text, several texts share the slots, and every text is greedy: so this tries one-token prompts,
positions, rows that could be mixed up, and the keys that a prefill left behind. It runs both graphs once, too.
"""

from __future__ import annotations

import logging

from server.backends.base import Backend, Sampling, Step
from server.errors import ModelError

logger = logging.getLogger(__name__)

TEXTS = 4
STEPS = 2


def check(backend: Backend) -> None:
    """In 16 bits a near tie may fall the other way in another graph, so more than half of the texts have to agree.

    Raises: ModelError where they don't: the answers would be wrong.
    """
    limits = backend.limits
    steps = min(STEPS, limits.max_input_tokens - 1, limits.max_total_tokens - 2)
    agreed = 0
    texts = [[(7919 * (number + 1)) % limits.vocabulary] for number in range(TEXTS)]
    for begin in range(0, TEXTS, limits.slots):
        group = dict(enumerate(texts[begin : begin + limits.slots]))
        for slot, text in group.items():
            text.append(_prefilled(backend, slot, text).token_id)
        for _ in range(steps):
            for slot, step in backend.decode().items():
                group[slot].append(step.token_id)
        for slot, text in group.items():
            backend.release(slot)
            agreed += _prefilled(backend, slot, text[:-1]).token_id == text[-1]
            backend.release(slot)
    if 2 * agreed <= TEXTS:
        raise ModelError(
            f"prefill and decode disagree on {TEXTS - agreed} of {TEXTS} texts, so its answers would be wrong: export "
            "the model again, and if that does not help, report it with the output of `tokenclock-server check`"
        )
    logger.info("self-check passed: prefill and decode agree on %d of %d texts", agreed, TEXTS)


def _prefilled(backend: Backend, slot: int, token_ids: list[int]) -> Step:
    while (step := backend.prefill(slot, token_ids, Sampling())) is None:
        pass
    return step
