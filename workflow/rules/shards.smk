"""
Patch shards of the training micrographs.

REQUIRED INPUTS
    results/{dataset}/halves/ of the training micrographs, excluded.tsv of the audit
    masks of the training micrographs, where the config names a folder of them
    the micrographs' groups of frames, where shards: pairings is more than 1
OUTPUTS
    results/{dataset}/shards/train_a.npy, train_b.npy, manifest.json (of each fold: shards/fold-1/)
"""


# A killed job leaves .train_a.part.npy, .train_b.part.npy and .shards.journal, which are not declared: the next
# run goes on with them.
rule write_shards:
    input:
        records=records("train"),
        halves=halves_of("train"),
        excluded="results/{dataset}/halves/excluded.tsv",
        masks=masks,
        groups=groups_of_train,
    output:
        manifest="results/{dataset}/shards/{fold}manifest.json",
        a="results/{dataset}/shards/{fold}train_a.npy",
        b="results/{dataset}/shards/{fold}train_b.npy",
    log:
        "logs/write_shards/{fold}{dataset}.log",
    benchmark:
        "benchmarks/jobs/write_shards/{fold}{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 4
    resources:
        mem="8GB",
        runtime="2h",
    params:
        settings=settings("shards"),
        directory=subpath(output.manifest, parent=True),
        val=lambda wildcards: FOLDS[wildcards.fold]["val"],
        test=lambda wildcards: FOLDS[wildcards.fold]["test"],
        code=code_version(
            "shards_write.py",
            "shards_cut.py",
            "shards.py",
            "shards_bad.py",
            "shards_pairings.py",
            "shards_part.py",
            "shards_tiles.py",
            "groups.py",
            "pair.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n write-shards --train {input.records:q} --val {params.val:q} --test {params.test:q} "
        "--excluded {input.excluded:q} --out {params.directory:q} --threads {threads} "
        "--settings {params.settings:q} 2>&1 | tee {log:q}"
