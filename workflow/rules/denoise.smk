"""
Denoised micrographs, one folder per method.

REQUIRED INPUTS
    results/{dataset}/halves/{mic}.json, and what the method needs: weights, a tuned filter, Topaz
OUTPUTS
    results/{dataset}/denoised/{method}/{mic}.mrc, {mic}_a.mrc, {mic}_b.mrc, {mic}_full.mrc, {mic}_noise.mrc,
    {mic}.json (how, and what it cost)
"""


rule denoise_micrograph:
    input:
        weights=model_of("weights.safetensors"),
        record=record_of,
        halves=sides_of,
    output:
        multiext("results/{dataset}/denoised/{method}/{mic}", *ESTIMATES, ".json"),
    log:
        "logs/denoise_micrograph/{dataset}/{method}/{mic}.log",
    benchmark:
        "benchmarks/jobs/denoise_micrograph/{dataset}/{method}/{mic}.tsv"
    wildcard_constraints:
        method="|".join(map(re.escape, OURS)),
    conda:
        "../../envs/cryon2n.yaml"
    threads: 2
    resources:
        gpu=GPU,
        mem="8GB",
        runtime="30m",
    params:
        directory=subpath(output[0], parent=True),
        device=DEVICE,
        symmetries=lambda wildcards: model_and_symmetries(wildcards.method)[1],
        code=code_version(
            "denoise.py",
            "denoise_tiles.py",
            "methods.py",
            "symmetry.py",
            "unet.py",
            "topaz_shape.py",
            "device.py",
            "pair.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n denoise-micrograph --weights {input.weights:q} --halves {input.record:q} --out {params.directory:q} "
        "--symmetries {params.symmetries} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule tune_filter:
    input:
        records=tuned_on(records),
        halves=tuned_on(halves_of),
        excluded="results/{dataset}/halves/excluded.tsv",
    output:
        filter="results/{dataset}/models/{fold}{method}/filter.json",
    log:
        "logs/tune_filter/{dataset}/{fold}{method}.log",
    wildcard_constraints:
        method="|".join(FILTERS),
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="4GB",
        runtime="30m",
    params:
        code=code_version("filters.py", "filters_nlm.py", "fourier.py", "half_errors.py", "pair.py", "mrcio.py"),
    shell:
        "cryon2n tune-filter --method {wildcards.method} --halves {input.records:q} --filter {output.filter:q} "
        "--excluded {input.excluded:q} "
        "2>&1 | tee {log:q}"


rule filter_micrograph:
    input:
        filter=model_of("filter.json"),
        record=record_of,
        halves=sides_of,
    output:
        multiext("results/{dataset}/denoised/{method}/{mic}", *ESTIMATES, ".json"),
    log:
        "logs/filter_micrograph/{dataset}/{method}/{mic}.log",
    benchmark:
        "benchmarks/jobs/filter_micrograph/{dataset}/{method}/{mic}.tsv"
    wildcard_constraints:
        method="|".join(FILTERS),
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="4GB",
        runtime="10m",
    params:
        directory=subpath(output[0], parent=True),
        code=code_version("filters.py", "filters_nlm.py", "fourier.py", "half_errors.py", "pair.py", "mrcio.py"),
    shell:
        "cryon2n filter-micrograph --filter {input.filter:q} --halves {input.record:q} --out {params.directory:q} "
        "2>&1 | tee {log:q}"


rule denoise_topaz:
    input:
        env="results/topaz-env/ready.json",
        record=record_of,
        halves=sides_of,
        model=branch(lambda wildcards: wildcards.method == "topaz-trained", then=model_of("weights.sav")),
    output:
        multiext("results/{dataset}/denoised/{method}/{mic}", *ESTIMATES, ".json"),
    log:
        "logs/denoise_topaz/{dataset}/{method}/{mic}.log",
    benchmark:
        "benchmarks/jobs/denoise_topaz/{dataset}/{method}/{mic}.tsv"
    wildcard_constraints:
        method="|".join(TOPAZ),
    conda:
        "../../envs/cryon2n.yaml"
    threads: 2
    resources:
        gpu=GPU,
        mem="16GB",
        runtime="1h",
    params:
        env=subpath(input.env, parent=True),
        directory=subpath(output[0], parent=True),
        model=lambda wildcards, input: optional("--model", input.model),
        device=DEVICE,
        code=code_version("topaz.py", "topaz_run.py", "pair.py", "mrcio.py"),
    shell:
        "cryon2n denoise-topaz --env {params.env:q} --method {wildcards.method} {params.model} --halves {input.record:q} "
        "--out {params.directory:q} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


if OUTSIDE:

    rule denoise_outside:
        input:
            record=record_of,
            halves=sides_of,
            found=lambda wildcards: list(
                filter(None, outside_files(wildcards.method, [wildcards.mic])[wildcards.mic].values())
            ),
        output:
            record="results/{dataset}/denoised/{method}/{mic}.json",
        log:
            "logs/denoise_outside/{dataset}/{method}/{mic}.log",
        benchmark:
            "benchmarks/jobs/denoise_outside/{dataset}/{method}/{mic}.tsv"
        wildcard_constraints:
            method="|".join(map(re.escape, OUTSIDE)),
        conda:
            "../../envs/cryon2n.yaml"
        threads: 2
        resources:
            gpu=lambda wildcards: GPU if "command" in OUTSIDE[wildcards.method] else 0,
            mem="16GB",
            runtime="2h",
        params:
            directory=subpath(output.record, parent=True),
            source=lambda wildcards: next(f"--{k}={v}" for k, v in OUTSIDE[wildcards.method].items()),
            code=code_version("outside.py", "pair.py", "mrcio.py"),
        shell:
            "cryon2n denoise-outside --method {wildcards.method} {params.source:q} --halves {input.record:q} "
            "--out {params.directory:q} 2>&1 | tee {log:q}"
