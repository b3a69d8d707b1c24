"""Parts of ``benchmarks/network_ablation.py``."""
