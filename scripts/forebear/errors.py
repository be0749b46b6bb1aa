"""The one exception for what a user can mend: its text says what, where and what to do."""


class ForebearError(Exception):
    """A mistake in the input. Scripts print its sentence, without a traceback, and exit with 1."""
