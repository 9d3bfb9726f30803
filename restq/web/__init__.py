"""The front end: HTTP in, requests to shards, HTTP out. Stateless, and without any rule about queues."""
