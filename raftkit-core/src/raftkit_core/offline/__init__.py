"""What is done to a node's store while no node runs on it: look, check, copy, and begin again after the worst.

Everything goes through the storage interfaces, so it works for any adapter. The store is held exclusively meanwhile.

- :mod:`.store` opens one, :mod:`.verify` reads all of it;
- :mod:`.archive` is the format of a backup, :mod:`.move` makes and restores one, and moves a store to another adapter;
- :mod:`.recover` makes a cluster of one survivor, :mod:`.seed` a new cluster out of a snapshot.
"""
