"""The way from the hub and back: downloads pinned to a commit, one commit a push, and clear sentences in between."""
