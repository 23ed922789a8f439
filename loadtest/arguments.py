"""What the command lines share: `tokenclock run`, `tokenclock probe` and `locust` name an endpoint in one way."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from loadtest import redaction
from loadtest.datasets import ORDERS, Dataset, DatasetError, parse
from loadtest.endpoints.choice import TYPES, Wanted
from loadtest.goodput import GoodputError
from loadtest.goodput import parse as parse_objectives
from loadtest.prompts import Shared
from loadtest.transport import TRANSPORTS
from loadtest.transport.base import Timeouts

INPUT_TOKENS = NEW_TOKENS = 256  # where a free run isn't told
TIMEOUTS = (
    ("--connect-timeout", "10s", "a connection that isn't open after this is none"),
    ("--first-byte-timeout", "2m", "an answer that hasn't begun by then is a timeout"),
    ("--idle-timeout", "60s", "a stream silent for longer is a timeout"),
    ("--timeout", "10m", "a request longer than this is a timeout"),
)


FRAMING = {"content-length", "transfer-encoding"}  # a request's body is framed by whoever writes it


class Usage(Exception):
    """The words of the command line don't fit together; the message says how they would."""


def add_users(group: Any, by_default: str = "") -> None:
    group.add_argument(
        "-u",
        "--users",
        "--concurrency",
        dest="users",
        type=count,
        metavar="N",
        help=f"requests in flight; with --rate, at most{by_default}",
    )


def add_dataset(group: Any) -> None:
    group.add_argument(
        "--dataset",
        type=Path,
        metavar="FILE",
        help="prompts from JSON lines: `prompt` or `messages`, and `max_tokens` (default: --new-tokens)",
    )
    group.add_argument("--dataset-order", choices=ORDERS, help="of its lines (default: shuffle, by the seed)")


def dataset(asked: argparse.Namespace, input_tokens: int | None) -> Dataset | None:
    """The file's lines, all of them checked. input_tokens: None where they weren't asked for.

    Raises: Usage.
    """
    if asked.dataset is None:
        if asked.dataset_order is not None:
            raise Usage("--dataset-order belongs to --dataset: add it, or leave it out")
        return None
    made = {
        "--input-tokens": input_tokens,
        "--shared-prefix-tokens": asked.shared_prefix_tokens,
        "--tokenizer": asked.tokenizer,
    }
    for name, value in made.items():
        if value:
            raise Usage(f"{name} is for prompts that are made, --dataset brings its own: leave one of them out")
    path = Path(asked.dataset)
    name = path.name.encode("utf-8", "replace").decode()  # it may be any bytes
    try:
        return parse(path.read_bytes(), name, asked.new_tokens or NEW_TOKENS)
    except OSError as error:
        raise Usage(f"{path} can't be read: {error.strerror}") from error
    except DatasetError as error:
        raise Usage(str(error)) from error


def shared_prefix(asked: argparse.Namespace, input_tokens: int, seed: int | str) -> Shared | None:
    """Raises: Usage."""
    tokens = asked.shared_prefix_tokens or 0
    if not 0 <= tokens < input_tokens:
        raise Usage(
            f"--shared-prefix-tokens {tokens} leaves nothing of {input_tokens} input tokens that could differ: share "
            "fewer, or make the prompts longer"
        )
    return Shared(tokens, seed) if tokens else None


def add_endpoint(group: Any) -> None:
    """group: an argparse group or parser, locust's among them."""
    group.add_argument(
        "--endpoint-type", choices=TYPES, help="what it speaks (default: guessed from the URL and its answers)"
    )
    group.add_argument("--model", metavar="NAME", help="asked for by name (default: the first that it lists)")
    group.add_argument(
        "--api-key",
        type=secret,
        metavar="KEY",
        help="sent as a bearer token, never kept (default: $OPENAI_API_KEY, for TGI $HF_TOKEN)",
    )
    group.add_argument(
        "--header", type=header, action="append", default=[], metavar="'NAME: VALUE'", help="of every request; repeats"
    )
    group.add_argument(
        "--extra-body", type=json_object, default={}, metavar="JSON", help="laid over every request; null leaves out"
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, for endpoints that count no prompts"
    )
    group.add_argument(
        "--no-stream", action="store_true", help="ask for whole replies, where none can be streamed: latency only"
    )


def add_goodput(group: Any) -> None:
    group.add_argument(
        "--goodput",
        nargs="+",
        metavar="KEY:MS",
        help="objectives of a request, such as ttft:500 tpot:50 e2el:5000; how many met all of them is reported",
    )
    group.add_argument(
        "--goodput-share",
        type=share,
        metavar="SHARE",
        help="of the requests that must meet them in every cell, such as 95%%: exit code 1 where fewer do",
    )


def check_goodput(asked: argparse.Namespace, share_needs_words: bool = True) -> None:
    """Raises: Usage."""
    if asked.goodput_share is not None and not asked.goodput and share_needs_words:
        raise Usage("--goodput-share is of the requests that meet --goodput: add it, or leave the share out")
    try:
        objectives = parse_objectives(asked.goodput or ())
    except GoodputError as error:
        raise Usage(f"--goodput: {error}") from error
    timed = [name for name in ("ttft", "tpot") if name in objectives]
    if timed and getattr(asked, "no_stream", False):
        raise Usage(f"--no-stream leaves no first token, which --goodput {timed[0]} is about: leave one of them out")


def add_wire(group: Any) -> None:
    group.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="gevent",
        help="what carries them: our own socket; httpx (takes proxies); huggingface_hub (TGI); boto3 (SageMaker)",
    )
    group.add_argument("--http2", action="store_true", help="HTTP/2 and nothing else, of https:// by httpx")
    group.add_argument("--cacert", type=Path, metavar="FILE", help="trust these certificate authorities (PEM)")
    group.add_argument("-k", "--insecure", action="store_true", help="don't verify certificates")


def add_timeouts(group: Any) -> None:
    for option, default, what in TIMEOUTS:
        group.add_argument(option, type=seconds, default=default, metavar="TIME", help=f"{what} (default: {default})")


def check_wire(asked: argparse.Namespace, url: str | None) -> None:
    """Raises: Usage where an option of the wire would change nothing. A proxy of httpx's may be under TLS itself."""
    encrypted = (url or "http://").lower().startswith(("https://", "sagemaker://"))
    if asked.http2 and not encrypted:
        raise Usage("--http2 is spoken under TLS, and nothing here has any: write https://, or leave it out")
    proxied = asked.transport == "httpx" and any(each.startswith("https://") for each in getproxies().values())
    if (asked.cacert or asked.insecure) and not encrypted and not proxied:
        raise Usage(
            "--cacert and --insecure are for certificates, and nothing here has one: write https://, or leave out"
        )


def wanted(asked: argparse.Namespace) -> Wanted:
    redaction.keep_environment()
    return Wanted(
        asked.endpoint_type,
        asked.model,
        asked.api_key,
        tuple(asked.header),
        asked.extra_body,
        asked.transport,
        streams=not asked.no_stream,
    )


def timeouts(asked: argparse.Namespace) -> Timeouts:
    return Timeouts(asked.connect_timeout, asked.first_byte_timeout, asked.idle_timeout, asked.timeout)


def shown(value: object) -> object:
    """An option's value as run.json may hold it. What is secret was told to `redaction` when it was read."""
    return str(value) if isinstance(value, Path) else value


def secret(text: str) -> str:
    redaction.keep(text)
    if not (text.isascii() and text.isprintable()):
        raise argparse.ArgumentTypeError("a key is of printable ASCII characters")
    if not text.strip():
        raise argparse.ArgumentTypeError("the key is empty: leave the option out, and the environment's is taken")
    return text


def command(text: str) -> str:
    """A server's, which may be given keys too."""
    redaction.keep_spoken(text)
    return text


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if (
        not colon
        or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        or not (value.isascii() and value.isprintable())
    ):
        raise argparse.ArgumentTypeError("a header is written as 'Name: value', in printable ASCII characters")
    redaction.keep_header(name, value)
    if name.lower() in FRAMING:
        raise argparse.ArgumentTypeError(f"{name} is the framing's own: leave it out")
    return name.lower(), value


def json_object(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from error  # not the text: it may hold a key
    if not isinstance(said, dict):
        raise argparse.ArgumentTypeError('this is no JSON object, such as {"top_k": 1}')
    redaction.keep_fields(said)
    return said


def share(text: str) -> float:
    """`95%` or `0.95`: above 0 and at most 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 100 %: write 95% or 0.95")
    return value


def count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1h30m` in seconds."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    parts = [float(part or 0) for part in match.groups()] if match else [0.0, 0.0, 0.0]
    total = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 30s, 5m or 1h30m")
    return total
