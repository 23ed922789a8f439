"""The command line: `tokenclock-server serve`, `export` and `check`.

Exit codes: 0 done, 1 failed while serving (`check`: nothing can run), 2 could not start; a sentence on stderr says why.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

VERBS = {
    "serve": "serve a model over HTTP",
    "export": "compile a model for AWS Neuron",
    "check": "say what this machine can run, and what is missing",
}
USAGE = "usage: tokenclock-server VERB [options]\n\n" + "\n".join(f"  {verb:8}{text}" for verb, text in VERBS.items())


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in VERBS:
        return fail(f"there is no verb {arguments[0]!r}: say {' or '.join(VERBS)}")
    # The hub client must not call home while it loads a local folder.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    verb, *rest = arguments
    try:
        return perform(verb, rest)
    except KeyboardInterrupt:  # before the server took over the signals
        return 130
    except ModuleNotFoundError as error:
        on_neuron = verb == "export" or "neuron" in (*rest, os.environ.get("TOKENCLOCK_BACKEND"))
        return fail(f"{error.name} is not installed: pip install 'tokenclock[{'neuron' if on_neuron else 'cpu'}]'")


def perform(verb: str, arguments: list[str]) -> int:
    from server.errors import ServerError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        match verb:
            case "export":
                from server.export import run as export

                return export(arguments)
            case "check":
                from server.check import run as check

                return check(arguments)
            case _:
                return serve(arguments)
    except ServerError as error:
        return fail(str(error))


def serve(arguments: list[str]) -> int:
    from server.app import create_app
    from server.lifecycle import run as run_app
    from server.logs import configure
    from server.settings import parse

    settings = parse(arguments)
    configure(settings.log_format, settings.log_level)
    logging.getLogger("server").info("settings", extra={"settings": settings.model_dump(mode="json")})
    run_app(create_app(settings), settings)
    return 0


def fail(sentence: str) -> int:
    print(f"tokenclock-server: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
