"""Where AWS takes an endpoint's requests, and who signs them: botocore's own rules, credential chain and profile.

Source: botocore 1.44, data/sagemaker-runtime and auth.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from loadtest import redaction
from loadtest.endpoints.base import EndpointError, parse_url
from loadtest.transport.base import HttpRequest, Target

SCHEME = "sagemaker://"
#: Headers that are AWS's part of a request, or its framing's.
OURS = re.compile(r"authorization|host|x-amz-.*|content-type|content-length|transfer-encoding")


@dataclass(frozen=True, slots=True)
class Place:
    """What a `sagemaker://` URL names."""

    name: str
    region: str | None = None  # None: the environment's or the profile's
    variant: str | None = None
    component: str | None = None


def parse(url: str) -> Place:
    """`sagemaker://NAME?region=…&variant=…&inference-component=…`.

    Raises: EndpointError.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets, that hold no address
        parts = SplitResult("", "", "", "", "")
    name, pairs = parts.netloc, parse_qsl(parts.query, keep_blank_values=True)
    said = dict(pairs)
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}", name) or parts.path.strip("/") or parts.fragment:
        shown = url if "@" not in name else f"{SCHEME}…@{name.rpartition('@')[2]}"
        raise EndpointError(f"{shown} names no endpoint: write it as sagemaker://ENDPOINT_NAME?region=eu-west-1")
    known = {"region", "variant", "inference-component"}
    if unknown := sorted(said.keys() - known):
        raise EndpointError(f"{url} says {unknown[0]}, which is none of {', '.join(sorted(known))}")
    if unclear := [key for key, value in pairs if not value or (key, said[key]) != (key, value)]:
        raise EndpointError(f"{url} says {unclear[0]} twice, or without a value: say it once, or leave it out")
    return Place(name, said.get("region"), said.get("variant"), said.get("inference-component"))


ANSWERED = "tokenclock-answered"  # in boto3's parsed reply: the body of a refusal, as it came


def _keep_what_was_answered(response_dict: Any, customized_response_dict: Any, **_: object) -> None:
    """A gateway's page isn't in AWS's form, and boto3's parser keeps nothing of it."""
    if response_dict["status_code"] >= 300:
        customized_response_dict[ANSWERED] = response_dict["body"]


class Runtime:
    """Where AWS takes a place's requests, and who signs them: botocore's own rules, credential chain and profile."""

    def __init__(self, place: Place, headers: Iterable[tuple[str, str]] = ()) -> None:
        """headers: the user's, of every request, for AWS or its container; one that is said twice has both values.

        Raises: EndpointError where there is no region, there are no credentials, or a header can't be the user's;
        ModuleNotFoundError.
        """
        import boto3
        from botocore.exceptions import BotoCoreError, NoRegionError

        self.place = place
        self._headers: dict[str, str] = {}
        for name, value in headers:
            named = name.lower()
            if OURS.fullmatch(named):
                raise EndpointError(f"--header {named} is not yours to say at {SCHEME}: AWS's signature needs its own")
            self._headers[named] = f"{self._headers[named]}, {value}" if named in self._headers else value
        self._clients: dict[tuple[float, float], Any] = {}
        try:
            self._session: Any = boto3.session.Session(
                region_name=place.region or os.environ.get("AWS_REGION")  # which boto3, of all SDKs, doesn't read
            )
            self._credentials = self._session.get_credentials()
            self.keys()
            client = self.client_waiting(60.0, 10.0)
        except NoRegionError as error:
            raise EndpointError(
                f"there is no region: write {SCHEME}{place.name}?region=eu-west-1, or set AWS_REGION"
            ) from error
        except BotoCoreError as error:
            raise EndpointError(f"AWS can't be asked: {error}") from error
        self.region: str = client.meta.region_name
        self.target: Target = parse_url(client.meta.endpoint_url)

    def client_waiting(self, silence_s: float, connect_s: float) -> Any:
        """boto3's client, one for a process: a failure is a sample, never a retry hidden in a latency, and more users
        than the ten of its default pool have a connection each.
        """
        from botocore.config import Config

        if (silence_s, connect_s) not in self._clients:
            config = Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=10_000,
                read_timeout=silence_s,
                connect_timeout=connect_s,
            )
            client = self._session.client("sagemaker-runtime", config=config)
            client.meta.events.register("before-sign.sagemaker-runtime", self._add_headers)
            client.meta.events.register("before-parse.sagemaker-runtime", _keep_what_was_answered)
            self._clients[silence_s, connect_s] = client
        return self._clients[silence_s, connect_s]

    def _add_headers(self, request: Any, **_: object) -> None:
        """The user's stand where boto3 says one, too."""
        for name, value in self._headers.items():
            del request.headers[name]
            request.headers[name] = value

    def keys(self) -> Any:
        """Of this moment: a chain that refreshes them does so here.

        Raises: EndpointError where there are none.
        """
        if self._credentials is None:
            raise EndpointError(
                "there are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or run where a role is"
            )
        keys = self._credentials.get_frozen_credentials()
        for secret in (keys.access_key, keys.secret_key, keys.token):
            redaction.keep(secret)
        return keys

    def signed(self, body: bytes, streamed: bool, request_id: str) -> HttpRequest:
        """The request that carries a container's body."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        path = f"/endpoints/{self.place.name}/invocations{'-response-stream' if streamed else ''}"
        headers = {
            "content-type": "application/json",
            "x-amzn-sagemaker-inference-id": request_id,
            **({"x-amzn-sagemaker-accept": "text/event-stream"} if streamed else {"accept": "application/json"}),
            **({"x-amzn-sagemaker-target-variant": self.place.variant} if self.place.variant else {}),
            **({"x-amzn-sagemaker-inference-component": self.place.component} if self.place.component else {}),
            **self._headers,
        }
        asked = AWSRequest("POST", f"{self.target.origin}{self.target.path}{path}", data=body, headers=headers)
        SigV4Auth(self.keys(), "sagemaker", self.region).add_auth(asked)
        return HttpRequest("POST", path, tuple(asked.headers.items()), body)
