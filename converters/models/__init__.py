"""The models themselves: their modules, their filters, and how their layers run by tiles."""
