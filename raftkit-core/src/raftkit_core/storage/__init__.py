"""Where the log and snapshots live: the contracts, and the adapters core ships."""
