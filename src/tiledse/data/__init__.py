"""Image sets: folders, labels and shards, and how an image becomes an input."""
