"""What can go wrong at a SageMaker endpoint, each by the name of an endpoint, and the frames that tell of it.

after k parts of a stream, or at the end of a shorter one
    fault-model-stream-error-k, fault-time-exceeded-k, fault-internal-stream-failure-k    an exception in the stream
    fault-error-message-k    an error in the stream that the API's description doesn't have
    fault-unknown-event-k    an event that it doesn't have, then the rest as if nothing had been
    fault-bad-crc-k          a part with a wrong checksum, then the rest
    fault-end-k              the stream ends as if it were complete
    fault-end-in-frame-k     the same, inside a frame
    fault-cut-frame-k        the connection closes inside a frame
    fault-cut-k              RST
    fault-stall-k            nothing more; the connection stays until the client leaves, or 30 s
instead of an answer
    fault-throttled, fault-throttled-mute (its message is null), fault-access-denied, fault-unavailable
    fault-not-streaming      where a stream is asked for; the words are ours
    fault-429, fault-503, …  the container's status, without asking the container
    fault-timed-out          a container that did not answer in time: its status is 0
late
    fault-slow-headers       the answer begins a second after it could

Source: botocore 1.44.5, sagemaker-runtime/2017-05-13; errors as they are quoted in aws/amazon-sagemaker-examples#290,
#293 and #4324, opensearch-project/ml-commons#2429 (throttled without a message).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass

from tests.sigv4 import Refused

ACCOUNT_ID = "123456789012"
SLOW_HEADERS_S = 1.0
STALL_S = 30.0
NAME = re.compile(r"fault-([a-z-]*?)-?(\d+)?")
JSON = {":content-type": "application/json"}
PART = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of application/vnd.amazon.eventstream; every header a string."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


def exception(name: str, message: str, **more: str) -> bytes:
    headers = {":message-type": "exception", ":exception-type": name, **JSON}
    return frame(headers, json.dumps({"Message": message, **more}).encode())


STREAM_BROKEN = exception(
    "ModelStreamError", "The connection to the model was reset or closed.", ErrorCode="StreamBroken"
)
TIME_EXCEEDED = exception(
    "ModelStreamError",
    "The model did not finish its response within the time allowed.",
    ErrorCode="ModelInvocationTimeExceeded",
)
UNKNOWN_EVENT = frame({":message-type": "event", ":event-type": "Weather", **JSON}, b'{"sky": "blue"}')
#: A stream's last frame, by its fault.
LAST = {
    "model-stream-error": STREAM_BROKEN,
    "time-exceeded": TIME_EXCEEDED,
    "internal-stream-failure": exception("InternalStreamFailure", "The stream processing failed."),
    "error-message": frame(
        {":message-type": "error", ":error-code": "InternalError", ":error-message": "on demand"}, b""
    ),
}
AFTER_K = {*LAST, "unknown-event", "bad-crc", "end", "end-in-frame", "cut-frame", "cut", "stall"}
DENIED = (
    f"User: arn:aws:iam::{ACCOUNT_ID}:user/someone is not authorized to perform: sagemaker:InvokeEndpoint because no "
    f"identity-based policy allows the sagemaker:InvokeEndpoint action"
)
REFUSALS: dict[str, tuple[int, str, str | None]] = {
    "throttled": (400, "ThrottlingException", "Rate exceeded"),
    "throttled-mute": (400, "ThrottlingException", None),
    "access-denied": (403, "AccessDeniedException", DENIED),
    "unavailable": (503, "ServiceUnavailable", "The service is unavailable. Try your call again."),
    "not-streaming": (400, "ValidationError", "The model of this endpoint does not support response streaming."),
}
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str  # `good`, a name of the list above without its number, or `status`
    number: int = 0  # parts before it, or the container's status

    @classmethod
    def of(cls, endpoint: str) -> Fault:
        """Raises: Refused where there is no endpoint of this name."""
        if endpoint == "good":
            return cls("good")
        if found := NAME.fullmatch(endpoint):
            kind, number = found[1], None if found[2] is None else int(found[2])
            if number is None and kind in {*REFUSALS, "timed-out", "slow-headers"}:
                return cls(kind)
            if number is not None and kind in AFTER_K:
                return cls(kind, number)
            if number is not None and not kind and 400 <= number < 600:
                return cls("status", number)
        raise Refused(400, "ValidationError", f"Endpoint {endpoint} of account {ACCOUNT_ID} not found.")

    def refuse(self, endpoint: str, region: str, streamed: bool) -> None:
        """Raises: Refused for the faults that are told of instead of an answer."""
        if self.kind in REFUSALS and (streamed or self.kind != "not-streaming"):
            raise Refused(*REFUSALS[self.kind])
        if self.kind == "timed-out":
            raise model_error(endpoint, region, 0, TIMED_OUT)
        if self.kind == "status":
            raise model_error(endpoint, region, self.number, json.dumps({"error": f"{self.number} on demand"}))


def model_error(endpoint: str, region: str, status: int, message: str | None) -> Refused:
    """What AWS makes of a container's 4xx or 5xx. Without a message: its answer broke off."""
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    side, code = ("client", "CLIENT_ERROR") if 400 <= status < 500 else ("server", "INTERNAL_FAILURE")
    said = "and could not load the entire response body" if message is None else f'with message "{message}"'
    told = (
        f"Received {side} error ({status}) from primary {said}. See https://{region}.console.aws.amazon.com/cloudwatch/"
        f"home?region={region}#logEventViewer:group={group} in account {ACCOUNT_ID} for more information."
    )
    return Refused(
        424,
        "ModelError",
        told,
        ErrorCode=f"{code}_FROM_MODEL",
        LogStreamArn=f"arn:aws:logs:{region}:{ACCOUNT_ID}:log-group:{group}",
        Message=told,
        OriginalMessage=message,
        OriginalStatusCode=status,
    )
