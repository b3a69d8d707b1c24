"""
Training: our models, and Topaz by its own recipe on the same halves.

REQUIRED INPUTS
    results/{dataset}/shards/manifest.json, halves of the validation micrographs
OUTPUTS
    results/{dataset}/models/{model}/weights.safetensors, metrics.json, log.csv (of each fold: models/fold-1/{model}/)
    results/topaz-env/ready.json, results/{dataset}/models/topaz-trained/weights.sav, record.json
"""


# The manifest holds the shards' checksums; checkpoints/last.ckpt beside the weights is not declared,
# so that it survives a failure and the next run goes on from it.
rule train_unet:
    input:
        manifest="results/{dataset}/shards/{fold}manifest.json",
        val=records("val"),
        val_halves=halves_of("val"),
        excluded="results/{dataset}/halves/excluded.tsv",
        init=lambda wildcards: config["models"][wildcards.model].get("init") or [],
    output:
        weights="results/{dataset}/models/{fold}{model}/weights.safetensors",
        metrics="results/{dataset}/models/{fold}{model}/metrics.json",
        history="results/{dataset}/models/{fold}{model}/log.csv",
    log:
        "logs/train_unet/{dataset}/{fold}{model}.log",
    benchmark:
        "benchmarks/jobs/train_unet/{dataset}/{fold}{model}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 16
    resources:
        gpu=GPU,
        mem="32GB",
        runtime="8h",
    params:
        settings=lambda wildcards: settings("models", wildcards.model),
        device=DEVICE,
        code=code_version(
            "train.py",
            "train_log.py",
            "step.py",
            "unet.py",
            "topaz_shape.py",
            "finetune.py",
            "validation.py",
            "whitening.py",
            "half_errors.py",
            "loaders.py",
            "loader_base.py",
            "loader_resident.py",
            "loader_window.py",
            "crops.py",
            "symmetry.py",
            "patch_files.py",
            "waits.py",
            "shards.py",
            "denoise_tiles.py",
            "device.py",
            "pair.py",
            "fourier.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n train-unet --manifest {input.manifest:q} --val {input.val:q} --weights {output.weights:q} "
        "--excluded {input.excluded:q} --metrics {output.metrics:q} --history {output.history:q} --device {params.device} --threads {threads} "
        "--settings {params.settings:q} 2>&1 | tee {log:q}"


# The network and its training step, as this machine runs them, against the same written plainly.
rule verify:
    input:
        weights="results/{dataset}/models/{fold}{model}/weights.safetensors",
    output:
        table="results/{dataset}/models/{fold}{model}/forms.tsv",
    log:
        "logs/verify/{dataset}/{fold}{model}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 2
    resources:
        gpu=GPU,
        mem="8GB",
        runtime="20m",
    params:
        device=DEVICE,
        code=code_version(
            "verify.py",
            "reference.py",
            "step.py",
            "unet.py",
            "topaz_shape.py",
            "whitening.py",
            "device.py",
            "fourier.py",
        ),
    shell:
        "cryon2n verify --warn --weights {input.weights:q} --out {output.table:q} --device {params.device} "
        "--threads {threads} 2>&1 | tee {log:q}"


# Topaz is GPL software with its own needs: a program in an environment of its own, never imported.
rule build_topaz_env:
    input:
        pins="envs/topaz.txt",
        script="envs/topaz.sh",
    output:
        ready="results/topaz-env/ready.json",
    log:
        "logs/build_topaz_env.log",
    localrule: True
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    params:
        directory=subpath(output.ready, parent=True),
    shell:
        'bash {input.script:q} {params.directory:q} --python "$PYTHON" 2>&1 | tee {log:q}'


rule train_topaz:
    input:
        env="results/topaz-env/ready.json",
        records=records("train"),
        halves=halves_of("train"),
        excluded="results/{dataset}/halves/excluded.tsv",
    output:
        model="results/{dataset}/models/{fold}topaz-trained/weights.sav",
        record="results/{dataset}/models/{fold}topaz-trained/record.json",
    log:
        "logs/train_topaz/{fold}{dataset}.log",
    benchmark:
        "benchmarks/jobs/train_topaz/{fold}{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 16
    resources:
        gpu=GPU,
        mem="32GB",
        runtime="24h",
    params:
        env=subpath(input.env, parent=True),
        settings=settings("topaz", "train"),
        device=DEVICE,
        code=code_version("topaz.py", "topaz_run.py", "pair.py", "mrcio.py"),
    shell:
        "cryon2n train-topaz --env {params.env:q} --halves {input.records:q} --model {output.model:q} "
        "--excluded {input.excluded:q} --record {output.record:q} --settings {params.settings:q} --device {params.device} --threads {threads} "
        "2>&1 | tee {log:q}"
