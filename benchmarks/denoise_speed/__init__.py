"""Parts of the benchmark ``denoise_speed.py``."""
