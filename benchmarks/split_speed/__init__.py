"""Speed of splitting movies: a quickly made full-size movie, and the programs that are timed on it."""
