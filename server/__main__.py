"""The command line: `tokenclock-server serve`.

Exit codes: 0 served and stopped, 1 failed while serving, 2 could not start (the sentence on stderr says why).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

VERBS = {"serve": "serve a model over HTTP"}
USAGE = "usage: tokenclock-server serve [options]\n\n" + "\n".join(f"  {verb:8}{text}" for verb, text in VERBS.items())


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in VERBS:
        return fail(f"there is no verb {arguments[0]!r}: say {' or '.join(VERBS)}")
    try:
        return serve(arguments[1:])
    except KeyboardInterrupt:  # before the server took over the signals
        return 130
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed: pip install 'tokenclock[cpu]'")


def serve(arguments: list[str]) -> int:
    # The hub client must not call home while it loads a local folder.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from server.app import create_app
    from server.errors import ServerError
    from server.lifecycle import run as run_app
    from server.settings import parse

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = parse(arguments)
        logging.info("settings: %s", settings.model_dump_json())
        run_app(create_app(settings), settings)
    except ServerError as error:
        return fail(str(error))
    return 0


def fail(sentence: str) -> int:
    print(f"tokenclock-server: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
