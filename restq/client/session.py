"""The requests.Session of a client that was given no requester. Loaded when it is first needed: requests is large."""

from __future__ import annotations

from typing import Any, NamedTuple

import requests
from requests.structures import CaseInsensitiveDict


class _Prepared(NamedTuple):
    """What all requests to one server have in common, and the settings of the session that it was made of."""

    settings: tuple[Any, ...]
    request: requests.PreparedRequest
    options: dict[str, Any]  # for the adapter: proxies and certificates


class Session(requests.Session):
    """Repeats nothing and follows no redirect.

    A pull that is repeated leases twice, so requests' default of no retries stays. A redirected POST would
    become a GET, which asks for something else.

    What is the same for all requests to a server is worked out once, and anew where a setting of the session changes:
    requests reads the environment and `.netrc` and merges all settings for each, which takes as long as all the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[str, _Prepared] = {}  # by scheme and host

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None, whatever the reply says: a redirect comes back as the reply that it is."""
        return None

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **options: Any) -> requests.Response:
        """Send a request, as requests does."""
        given = {name: value for name, value in options.items() if value is not None}  # its verbs give all they know
        plain = not args and isinstance(method, str) and isinstance(url, str) and given.keys() <= _PLAIN
        plain = plain and given.keys() >= _NEEDED and isinstance(given.get("data", b""), bytes)
        # A callable signs each request for itself, and may want to see the response.
        if not plain or self.cookies or self.params or self.hooks["response"] or callable(self.auth):
            return super().request(method, url, *args, **options)
        return self._send_plain(str(method), str(url), **given)

    def _send_plain(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        timeout: float,
        data: bytes | None = None,
        allow_redirects: bool = False,
    ) -> requests.Response:
        common = self._common(url)
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, url, data
        request.hooks = common.request.hooks
        request.headers = CaseInsensitiveDict({**common.request.headers, **headers})
        if method != "GET":
            request.headers["Content-Length"] = str(len(data or b""))
        response = self.get_adapter(url).send(request, timeout=timeout, **common.options)
        response.content  # noqa: B018 - it is read to its end here, where what fails is an OSError
        if response.cookies:
            self.cookies.update(response.cookies)
        return response

    def _common(self, url: str) -> _Prepared:
        """Raises what requests raises of an address that is none."""
        server = url[: url.find("/", len("https://"))]
        settings = (dict(self.headers), self.auth, dict(self.proxies), self.verify, self.cert, self.trust_env)
        found = self._prepared.get(server)
        if found is None or found.settings != settings:
            request = self.prepare_request(requests.Request("GET", url))
            options: Any = self.merge_environment_settings(request.url, {}, False, None, None)
            found = self._prepared[server] = _Prepared(settings, request, options)
        return found


_NEEDED = frozenset({"headers", "timeout"})
_PLAIN = _NEEDED | {"data", "allow_redirects"}
