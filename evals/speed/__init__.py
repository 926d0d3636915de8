"""How long convolutions and models take, correct first, beside the best there is otherwise."""
