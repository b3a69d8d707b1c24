"""Motion correction on simulated movies with a known motion: simulator, methods and measures."""
