"""restq: coordinates batches of work over pools of machines.

`from restq import Realms` is the Python client, `from restq.aio import Realms` the one for asyncio; `restq web` starts
a server. Importing this package starts nothing and reads nothing: the client is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restq.client import Job as Job
    from restq.client import Realm as Realm
    from restq.client import Realms as Realms

__version__ = "1.3.0"
__all__ = ["Job", "Realm", "Realms", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the client late, so that `restq web` and the shards never import requests."""
    if name in ("Job", "Realm", "Realms"):
        from restq import client

        return getattr(client, name)
    raise AttributeError(f"module 'restq' has no attribute {name!r}")
