"""Runs `tokenclock` commands, each in a process of its own that is forked from this one, which has imported everything.

For commands that end before they do anything: importing is nearly all that they cost. A line of stdin is the words of
one, as JSON; a line of stdout is its exit code, stdout and stderr.
"""

from __future__ import annotations

import loadtest.run  # noqa: F401  # isort: skip  (first: it patches)

import json
import os
import sys
import tempfile
import traceback

from loadtest.__main__ import main


def forked(words: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (pid := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                sys.argv = ["loadtest/__main__.py", *words]
                main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
