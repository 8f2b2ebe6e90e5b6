"""The pass over a pool: shards → trunk → `acquire` → a few numbers per sample."""
