"""The mathematics of a filter: its spectrum, what masks leave of it, and how it is split and decimated."""
