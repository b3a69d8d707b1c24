"""
Performance of this machine, only when asked for: snakemake results/{dataset}/bench/loaders.tsv

REQUIRED INPUTS
    results/{dataset}/shards/manifest.json, halves of the training micrographs
OUTPUTS
    results/{dataset}/bench/loaders.tsv, loaders.json, loaders.png; the report shows them once they are there
"""


rule bench_loaders:
    input:
        manifest="results/{dataset}/shards/{fold}manifest.json",
        records=records("train"),
        halves=halves_of("train"),
    output:
        table="results/{dataset}/bench/{fold}loaders.tsv",
        found="results/{dataset}/bench/{fold}loaders.json",
        figure=report(
            "results/{dataset}/bench/{fold}loaders.png",
            category="Performance",
            labels={"What": "loaders"},
            caption="../report/loaders.rst",
        ),
    log:
        "logs/bench_loaders/{fold}{dataset}.log",
    benchmark:
        "benchmarks/jobs/bench_loaders/{fold}{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 16
    resources:
        gpu=GPU,
        mem="64GB",
        runtime="30m",
    params:
        out=subpath(output.table, parent=True),
        crop=list(config["models"].values())[0].get("crop", 512),
        batch=list(config["models"].values())[0].get("batch", 8),
        device=DEVICE,
        code=code_version(
            "bench.py",
            "bench_capped.py",
            "bench_data.py",
            "bench_drive.py",
            "bench_feed.py",
            "bench_loaders.py",
            "bench_loaders_figure.py",
            "bench_memory.py",
            "crops.py",
            "loader_base.py",
            "loader_resident.py",
            "loader_window.py",
            "loaders.py",
            "patch_files.py",
            "waits.py",
        ),
    shell:
        "cryon2n bench loaders --manifest {input.manifest:q} --records {input.records:q} --out {params.out:q} "
        "--crop {params.crop} --batch {params.batch} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"
