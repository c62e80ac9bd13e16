"""The vocabulary every other part of raftkit speaks. Imports nothing of ours."""
