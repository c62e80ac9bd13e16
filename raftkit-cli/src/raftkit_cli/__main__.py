"""``python -m raftkit_cli``: how ``demo`` and ``local`` start their nodes, whatever is on the PATH."""

from raftkit_cli.main import main

if __name__ == "__main__":
    main()
