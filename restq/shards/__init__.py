"""The shard: realms, the file that keeps them, and the process that owns both."""
