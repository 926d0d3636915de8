"""The verbs as plain functions: they load, measure and write, and neither parse a command line nor print.

Each returns a `Result` of its own kind, see `sparsify.report.schema`, and tells what it does to a callback, see
`progress`.  `sparsify.convert` and its kin are found there when they are asked for.
"""
