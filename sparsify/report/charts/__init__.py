"""Charts as data (`chart`), drawn on the page (`svg`) and, by matplotlib, for the model card (`png`)."""
