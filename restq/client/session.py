"""The requests.Session of a client that was given no requester. Loaded when it is first needed: requests is large."""

from __future__ import annotations

import requests


class Session(requests.Session):
    """Repeats nothing and follows no redirect.

    A pull that is repeated leases twice, so requests' default of no retries stays. A redirected POST would
    become a GET, which asks for something else.
    """

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None, whatever the reply says: a redirect comes back as the reply that it is."""
        return None
