"""The visible text is what stands before the first stop sequence, however it comes in pieces; nothing is held for good.

Method: hypothesis over texts of few letters, so that stops are begun, broken off, overlap; the oracle sees the whole.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from server.api.openai.stops import Visible

TEXTS = st.lists(st.text("ab", max_size=4), min_size=1, max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(TEXTS, STOPS)
@example(["ab", "a", "b", "c"], ["abab", "ba"])
@example(["x", "a", "a"], ["aab"])
def test_pushes_put_together_are_the_text_before_the_stop(pieces: list[str], stops: list[str]):
    # As the engine does: the token that completes a stop is the last one.
    visible, text, shown = Visible(stops), "", ""
    for piece in pieces[:-1]:
        text += piece
        if any(stop in text for stop in stops):
            shown += visible.last(piece, stopped=True)
            assert shown == text[: min(text.find(stop) for stop in stops if stop in text)]
            return
        shown += visible.push(piece)
        assert text.startswith(shown)
        held = text[len(shown) :]
        assert any(stop.startswith(held) for stop in stops) or not held, "only what may become a stop is held back"
    text += pieces[-1]
    stopped = any(stop in text for stop in stops)
    shown += visible.last(pieces[-1], stopped)
    assert shown == (text[: min(text.find(stop) for stop in stops if stop in text)] if stopped else text)


def test_a_text_that_no_stop_has_ended_is_shown_whole():
    # A stop sequence before `min_tokens` doesn't end the text, so it is part of it.
    visible = Visible(["ab"])
    assert visible.push("xa") + visible.last("bc", stopped=False) == "xabc"
