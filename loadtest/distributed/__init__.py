"""A load from several processes or machines, measured as exactly as from one: locust shares the users out, and every
raw sample comes to the master's one `samples.jsonl`, once.

Four messages, over locust's own connection between a worker and its master; each holds the `run` it belongs to:

| message | from | holds | lost or doubled |
|---|---|---|---|
| `tokenclock-ask` | master | `kind`, `data` | asked again until answered; the worker does it once |
| `tokenclock-answer` | worker | `kind`, `data` | given again whenever it is asked again |
| `tokenclock-samples` | worker | `first`, `lines` | sent again until acknowledged; the master knows what it has |
| `tokenclock-ack` | master | `has`: lines of this worker that are in the file | the next one says it again |

Kinds, in this order: `task` (which process, what is measured → who the worker is, and what it found), `before` (of one
worker: the server's own metrics are read), `gather` and `begin` (of an open loop: its users wait; the schedule starts),
`stop` (→ how much there was, when all of it is acknowledged), `after` (as `before` → both), `calibrate` (→ the client's
own error, on the worker's machine). At any time `cut`: what runs is cancelled.
"""
