"""GLUE: its tasks and their files, scores, tests on the same examples, and a short fine-tune."""
