"""One streamed HTTP exchange: bytes with the instants at which they arrived. See `loadtest.transport.base`."""

TRANSPORTS = ("gevent", "httpx", "huggingface_hub", "boto3")  # by the names that samples and command lines have
