"""A catalogue of products, larger than memory: read as a stream, cleaned, split by cluster, written in shards."""
