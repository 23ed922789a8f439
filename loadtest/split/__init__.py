"""What the time to first token consists of: by request where the server tells, else from averages that it publishes."""
