"""What comes out of the slots is what transformers' own `generate` gives, token for token.

Method: requests of different lengths join and leave the slots of a running engine mid-decode; the oracle runs each of
them alone, through `generate`, in fp32, with the same model. Nothing is tolerated: ids are compared for equality.
"""

from __future__ import annotations

import json
import queue
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from server.backends.base import Sampling
from server.backends.transformers_cpu import TransformersBackend
from server.engine.engine import Batch, Engine
from server.engine.request import Delivery, Failure, FinishReason, Request, Task, Token
from server.metrics import Metrics
from server.tokenizer import Tokenizer
from tests.fault_server import Stumbling
from tests.server.scripted import put_all

SLOTS = 4


class Collector:
    """Stands where the event loop stands: delivers every batch at once and counts tokens."""

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.batches: list[int] = []

    def __call__(self, batch: Batch) -> None:
        self.batches.append(len(batch))
        for request, delivery in batch:
            request.deliver([delivery])
            self.tokens.put(None)


class Running:
    """An engine over a model folder, and the requests sent to it."""

    def __init__(self, folder: Path, slots: int = SLOTS, fail_every: int | None = None) -> None:
        self.tokenizer = Tokenizer.load(str(folder))
        self.backend = TransformersBackend.load(str(folder), slots, 512, 1, self.tokenizer.eos_token_ids)
        served: Any = self.backend if fail_every is None else Stumbling(self.backend, fail_every, seed=7)
        self.collector = Collector()
        self.engine = Engine(served, self.tokenizer, self.collector, Metrics(), lambda error: None)
        self.engine.start()


@pytest.fixture(params=["demo_folder", "splitting_folder"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(request.getfixturevalue(request.param))
    yield running
    running.engine.stop(10)


class Sent:
    """A request on its way, and what has come back of it."""

    def __init__(
        self, running: Running, ids: list[int], new_tokens: int, sampling: Sampling, stop: tuple[str, ...] = ()
    ):
        self.inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self.request = Request("r", Task("", tuple(ids), new_tokens, sampling, stop), partial(put_all, self.inbox))
        running.engine.submit(self.request)

    def tokens(self) -> list[Token]:
        """Blocks until the request has ended."""
        found: list[Token] = []
        while not found or found[-1].finish is None:
            delivery = self.inbox.get(timeout=60)
            assert not isinstance(delivery, Failure), delivery
            found.append(delivery)
        return found


def oracle(running: Running, ids: list[int], new_tokens: int, **options: Any) -> list[int]:
    """The ids that `generate` adds to a prompt."""
    output = running.backend._model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=new_tokens,
        **options,
    )
    return output[0, len(ids) :].tolist()


def prompt(running: Running, length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, running.tokenizer.fast.get_vocab_size()), k=length)


def test_sixteen_greedy_requests_that_join_and_leave_mid_decode_equal_generate_one_by_one(running: Running):
    generator = random.Random(7)
    wanted = [(generator.randint(1, 200), generator.randint(1, 90)) for _ in range(16)]
    sent: list[Sent] = []
    for i, (length, new_tokens) in enumerate(wanted):
        # Not all at once: a request comes when some more tokens have been made, so that it joins running ones.
        for _ in range(generator.randint(0, 25) if i > SLOTS else 0):
            running.collector.tokens.get(timeout=60)
        sampling = Sampling(ignore_eos=i % 2 == 0)
        sent.append(Sent(running, prompt(running, length, i), new_tokens, sampling))
    answers = [each.tokens() for each in sent]

    spans = [(each.request.first_token_s, each.request.last_token_s) for each in sent]
    moments = [moment for span in spans for moment in span]
    disturbed = sum(any(first < moment < last for moment in moments) for first, last in spans)
    assert disturbed >= 10, "too few requests saw others join or leave while they were decoded"
    for i, (_each, answer) in enumerate(zip(sent, answers, strict=True)):
        length, new_tokens = wanted[i]
        alone = {"min_new_tokens": new_tokens} if i % 2 == 0 else {}
        expected = oracle(running, prompt(running, length, i), new_tokens, do_sample=False, **alone)
        assert [token.id for token in answer] == expected, f"request {i}"
        assert "".join(token.text for token in answer if not token.special) == running.tokenizer.decode(expected)
        ended = FinishReason.EOS if expected[-1] in running.tokenizer.eos_token_ids else FinishReason.LENGTH
        assert answer[-1].finish is ended


def test_what_a_failed_call_left_in_the_cache_reaches_no_later_text(demo_folder: Path):
    # One call of twelve raises: before, within (its rows full of NaN), or after its work.
    running = Running(demo_folder, fail_every=12)
    prompts = [prompt(running, 3 + 9 * (i % 12), i) for i in range(80)]
    # Before anything is sent: a failure strikes whoever uses the model.
    rights = [oracle(running, ids, 9, do_sample=False, min_new_tokens=9) for ids in prompts]
    sent = [Sent(running, ids, 1 + i % 9, Sampling(ignore_eos=True)) for i, ids in enumerate(prompts)]
    failed = 0
    for i, each in enumerate(sent):
        ids, last = [], None
        while last is None:
            delivery = each.inbox.get(timeout=60)
            if isinstance(delivery, Failure):
                last = delivery
            else:
                ids.append(delivery.id)
                last = delivery.finish
        failed += isinstance(last, Failure)
        new_tokens = 1 + i % 9
        assert ids == rights[i][: len(ids)], f"request {i}"
        assert isinstance(last, Failure) or len(ids) == new_tokens
    running.engine.stop(10)
    assert 10 < failed < 60


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.7}, {"temperature": 0.7, "top_k": 0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_p": 0.6, "temperature": 1.3}, {"top_p": 0.6, "temperature": 1.3, "top_k": 0}),
        ({"typical_p": 0.5}, {"typical_p": 0.5, "top_k": 0}),
        ({"repetition_penalty": 1.4, "top_k": 20}, {"repetition_penalty": 1.4, "top_k": 20}),
    ],
)
def test_sampling_with_a_seed_draws_what_generate_draws_with_that_seed(running: Running, ours: Any, theirs: Any):
    ids = prompt(running, 40, 1)
    company = [Sent(running, prompt(running, 9 * i + 1, i), 60, Sampling()) for i in range(3)]
    answer = Sent(running, ids, 50, Sampling(do_sample=True, seed=11, ignore_eos=True, **ours)).tokens()
    for each in company:
        each.tokens()
    torch.manual_seed(11)
    expected = oracle(running, ids, 50, do_sample=True, min_new_tokens=50, **theirs)
    assert len(set(expected)) > 3
    assert [token.id for token in answer] == expected


def test_greedy_with_a_repetition_penalty_equals_generate(running: Running):
    ids = prompt(running, 30, 2)
    answer = Sent(running, ids, 40, Sampling(repetition_penalty=1.3, ignore_eos=True)).tokens()
    expected = oracle(running, ids, 40, do_sample=False, repetition_penalty=1.3, min_new_tokens=40)
    assert [token.id for token in answer] == expected
    assert expected != oracle(running, ids, 40, do_sample=False, min_new_tokens=40), "the penalty changes nothing here"


def test_no_text_ends_before_its_least_length(running: Running):
    ends_early = [
        seed for seed in range(40) if len(oracle(running, prompt(running, 9, seed), 30, do_sample=False)) < 20
    ]
    for seed in ends_early[:3]:
        ids = prompt(running, 9, seed)
        answer = Sent(running, ids, 30, Sampling(min_new_tokens=20)).tokens()
        assert [token.id for token in answer] == oracle(running, ids, 30, do_sample=False, min_new_tokens=20)
        assert len(answer) >= 20
    if running.tokenizer.fast.get_vocab_size() < 300:  # the model of single bytes has two ids that end a text
        assert ends_early, "no text ends early by itself: this shows nothing"


def test_an_end_of_text_that_only_the_tokenizer_names_is_suppressed_too(demo_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    for name in ("generation_config.json", "config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"eos_token_id": None}))
    running = Running(folder)
    try:
        assert running.tokenizer.eos_token_ids == {1}
        for seed in range(4):
            wild = Sampling(do_sample=True, temperature=50.0, seed=seed, min_new_tokens=300)
            answer = Sent(running, prompt(running, 5, seed), 400, wild).tokens()
            assert len(answer) > 300
            ignored = Sampling(do_sample=True, temperature=50.0, seed=seed, ignore_eos=True)
            assert len(Sent(running, prompt(running, 5, seed), 400, ignored).tokens()) == 400
    finally:
        running.engine.stop(10)


def test_a_stop_string_before_the_least_length_does_not_end_the_text(running: Running):
    ids = prompt(running, 25, 4)
    whole = Sent(running, ids, 40, Sampling(ignore_eos=True)).tokens()
    early = "".join(token.text for token in whole[:8])[3:6]
    plain = Sent(running, ids, 40, Sampling(ignore_eos=True), stop=(early,)).tokens()
    assert len(plain) <= 8
    longer = Sent(running, ids, 40, Sampling(ignore_eos=True, min_new_tokens=20), stop=(early,)).tokens()
    assert len(longer) >= 20


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(do_sample=True, seed=3, top_p=0.8, frequency_penalty=0.5)])
def test_a_request_alone_and_a_request_in_company_are_equal_token_by_token(running: Running, sampling: Sampling):
    # CPU, fp32, and a batch of fixed shape: that is the claim.
    ids = prompt(running, 30, 9)
    alone = Sent(running, ids, 60, sampling).tokens()
    company = [Sent(running, prompt(running, 50 * i + 1, i), 20 * i + 5, Sampling()) for i in range(6)]
    joined = Sent(running, ids, 60, sampling).tokens()
    for each in company:
        each.tokens()
    assert [token.id for token in joined] == [token.id for token in alone]
    for one, other in zip(joined, alone, strict=True):
        assert one.score is not None
        assert other.score is not None
        assert one.score.logprob == pytest.approx(other.score.logprob, abs=1e-4)


def test_scores_of_prompt_and_new_tokens_are_the_models_own(running: Running):
    ids = prompt(running, 20, 3)
    sent = Sent(running, ids, 10, Sampling(ignore_eos=True, top_n_tokens=4, prompt_logprobs=True))
    answer = sent.tokens()
    whole = torch.tensor([ids + [token.id for token in answer]])
    with torch.inference_mode():
        plain = running.backend._model(whole, use_cache=False).logits.log_softmax(-1)[0]
    scores = [*sent.request.prompt_scores, *(token.score for token in answer)]
    assert len(scores) == whole.shape[1] - 1
    for place, score in enumerate(scores):
        assert score is not None
        assert score.logprob == pytest.approx(float(plain[place, whole[0, place + 1]]), abs=1e-3)
        likeliest = plain[place].topk(4)
        assert [logprob for _, logprob in score.top] == pytest.approx(likeliest.values.tolist(), abs=1e-3)
        assert [token_id for token_id, _ in score.top] == likeliest.indices.tolist()


def test_a_stop_string_ends_the_text_even_across_tokens(running: Running):
    ids = prompt(running, 25, 4)
    text = running.tokenizer.decode(oracle(running, ids, 60, do_sample=False, min_new_tokens=60))
    stop = text[20:26]
    answer = Sent(running, ids, 60, Sampling(ignore_eos=True), stop=(stop,)).tokens()
    said = "".join(token.text for token in answer)
    assert answer[-1].finish is FinishReason.STOP
    assert stop in said
    assert len(said) < len(text)
    assert text.startswith(said.rstrip("\ufffd"))
    before_the_last = "".join(token.text for token in answer[:-1])
    assert stop not in before_the_last, "it ended one token too late"


def test_a_decode_step_of_four_slots_is_one_forward_pass(running: Running):
    calls = []
    step = running.backend._step

    def counted(token_ids: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(token_ids.shape))
        return step(token_ids, *more)

    running.backend._step = counted
    for slot in range(SLOTS):
        running.backend.prefill(slot, prompt(running, 5 + slot, slot), Sampling())
    del calls[:]
    for _ in range(3):
        assert len(running.backend.decode()) == SLOTS
    assert calls == [(SLOTS, 1)] * 3


def test_a_full_slot_uses_every_position_and_no_more(running: Running):
    ids = prompt(running, 500, 5)
    answer = Sent(running, ids, 12, Sampling(ignore_eos=True)).tokens()
    assert [token.id for token in answer] == oracle(running, ids, 12, do_sample=False, min_new_tokens=12)


def test_tokens_of_a_step_leave_in_one_hand_over(running: Running):
    sent = [Sent(running, prompt(running, 10, i), 30, Sampling(ignore_eos=True)) for i in range(SLOTS)]
    for each in sent:
        each.tokens()
    assert max(running.collector.batches) == SLOTS
    assert len(running.collector.batches) < 30 * SLOTS
