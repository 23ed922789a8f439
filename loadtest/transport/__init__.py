"""One streamed HTTP exchange: bytes with the instants at which they arrived. See `loadtest.transport.base`."""
