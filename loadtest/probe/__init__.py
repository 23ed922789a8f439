"""One request looked at closely: its phases, its events, and what looks wrong."""
