"""The config: its schema, its checks, and what each key means."""
