"""Tokens and passwords taken out of what is printed or written down."""

import os
import re
from collections.abc import Mapping

HIDDEN = "***"

# The user and password of an address (a path may have made one slash of two), the signature of a signed one, and the hub's own tokens.
_IN_ADDRESS = re.compile(r"(:/{1,2})[^/\s@'\"]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:token|signature|credential|secret|password|key|sig)[\w.-]*=)[^&\s'\"]+")
_OF_THE_HUB = re.compile(r"\bhf_\w{16,}")
_SECRET_NAME = re.compile(r"(?i)token|secret|password|passwd|api_?key|credential")
_SHORTEST = 8  # shorter values are words such as "true", and what begins with a slash is the path of a secret


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the values of environment variables that are named as secrets, and without what looks like one."""
    for name, value in environment.items():
        if len(value) >= _SHORTEST and not value.startswith("/") and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}", text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    return _OF_THE_HUB.sub(HIDDEN, text)
