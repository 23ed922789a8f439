"""The SageMaker runtime's stand-in as a context, and requests signed for it, for the tests of its clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.sigv4 import Account


@dataclass(frozen=True, slots=True)
class SageMaker:
    """A runtime as its clients see it, and what it recorded."""

    url: str
    region: str
    access_key: str
    secret_key: str
    session_token: str | None
    expired_token: str

    def records(self) -> Any:
        """A list of `sagemaker_runtime.Record`s, as JSON has them."""
        return self._call("GET")

    def clear(self) -> None:
        self._call("DELETE")

    def environ(self) -> dict[str, str]:
        """What a client in a process of its own needs to come here, and nowhere else."""
        token = {} if self.session_token is None else {"AWS_SESSION_TOKEN": self.session_token}
        return token | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def _call(self, method: str) -> Any:
        with closing(HTTPConnection(urlsplit(self.url).netloc, timeout=20)) as connection:
            connection.request(method, "/records")
            return json.loads(connection.getresponse().read())


@contextmanager
def runtime(container_url: str, **options: Any) -> Iterator[SageMaker]:
    """A runtime in a process of its own; `cut=7` is `--cut 7`, and so on."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sagemaker_runtime", f"--container={container_url}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    names = ("region", "access_key", "secret_key", "session_token", "expired_token")
    with process:  # leaving closes stdin, which ends it
        port = json.loads(process.stdout.readline())["port"]
        yield SageMaker(
            f"http://127.0.0.1:{port}", **{name: options.get(name, getattr(Account(), name)) for name in names}
        )
    assert process.returncode == 0


def signed(
    url: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    account: Account = Account(),  # noqa: B008  (it is frozen)
) -> dict[str, str]:
    """The headers, in lower case, of a POST that botocore has signed."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("POST", url, data=body, headers=dict(headers or {}))
    credentials = Credentials(account.access_key, account.secret_key, token)
    SigV4Auth(credentials, account.service, account.region).add_auth(request)
    return {"host": urlsplit(url).netloc} | {name.lower(): value for name, value in request.headers.items()}
