"""The Python client: `Realms` for a server, `Realm` for one realm of it, `Job` for what a pull leased.

Nothing is sent and no configuration is read until a client is used. What restq refuses is raised here as
the very class that the server raised, out of `restq.errors`.
"""

from __future__ import annotations

from restq.client.job import Job
from restq.client.realm import Realm
from restq.client.realms import Realms

__all__ = ["Job", "Realm", "Realms"]
