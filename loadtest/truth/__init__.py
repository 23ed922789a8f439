"""A server that streams on a known schedule and stamps every send: what a client's clock is calibrated against.

`python -m loadtest.truth` prints `{"port": N}` once it listens on 127.0.0.1 and ends on SIGTERM, SIGINT, or when its
stdin closes. One thread, no blocking: a heap of due times, an epoll set, sockets that never wait. It serves
`POST /generate_stream` (as `/invocations` too), `POST /tokenize`, `GET /info`, `GET /health`, and with `--openai`
`POST /v1/completions` and `/v1/chat/completions`. `GET /truth` gives the records as JSON lines, `DELETE /truth` forgets
all streams so far.

- A token is one `send()`, and `time.monotonic_ns()` is read immediately before it. The clock is one for all processes
  of the machine. All that follows the last token goes out in the last token's send; the head (for chat with the role
  event) in a send of its own, at once.
- A token is due so long after the request's arrival, not after the token before it: a late send delays no other.
- What a socket doesn't take stays in order behind it. The stamp is of the first attempt, or, behind others, of when
  the attempt would have been; the record lists these tokens as `delayed`.
- With gap 0, a drain: from the first token on as fast as the socket takes it, up to 32 tokens in one send
  with one stamp, and nothing is stamped before the socket had room for what precedes it.
- A client that shuts down its side of the connection has left.
"""

from loadtest.truth.process import Truth, truth
from loadtest.truth.schedule import Schedule
from loadtest.truth.stream import Record

__all__ = ["Record", "Schedule", "Truth", "truth"]
