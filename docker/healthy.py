#!/opt/narrowgate/bin/python -IS
"""Exits 0 when HAProxy has a gateway replica that answers. usage: healthy.py [URL]."""

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/-/healthz"
TIMEOUT_S = 2.0


def main() -> int:
    """Ask once and return the exit status."""
    url = sys.argv[1] if len(sys.argv) > 1 else URL
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310  # loopback
            return 0 if response.status == 200 else 1
    except (urllib.error.URLError, OSError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
