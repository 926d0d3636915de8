"""The search for a plan within a budget, by measurements: candidates, runs that go on from a journal, comparisons."""
