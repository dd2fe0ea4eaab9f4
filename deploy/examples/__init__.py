"""Examples: whole programs on top of the client, to be read and copied."""
