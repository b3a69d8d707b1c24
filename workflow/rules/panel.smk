"""
What the methods invent, and whether particles are found in what they make.

REQUIRED INPUTS
    halves of the test micrographs, results/{dataset}/denoised/{method}/ of them and of their probes; truth or marks
OUTPUTS
    results/{dataset}/probes/, panel/{method}.tsv, panel.tsv, picks_topaz.tsv, picking.tsv,
    picking_curves.tsv
"""


rule write_probes:
    input:
        record="results/{dataset}/halves/{mic}.json",
        halves=multiext("results/{dataset}/halves/{mic}", "_a.mrc", "_b.mrc"),
        truth=lambda wildcards: truth_of([wildcards.mic]),
    output:
        multiext(
            "results/{dataset}/probes/{mic}",
            "-injected.json",
            "-injected_a.mrc",
            "-injected_b.mrc",
            "-injected_signal.mrc",
            "-scrambled.json",
            "-scrambled_a.mrc",
            "-scrambled_b.mrc",
        ),
    log:
        "logs/write_probes/{dataset}/{mic}.log",
    wildcard_constraints:
        mic="|".join(map(re.escape, MICROGRAPHS)),
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="30m",
    params:
        directory=subpath(output[0], parent=True),
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        radius=optional("--radius", config["compare"]["panel"]["radius_A"]),
        code=code_version(
            "probes.py",
            "fourier.py",
            "half_errors.py",
            "halves.py",
            "metrics.py",
            "phantom.py",
            "phantom_molecule.py",
            "pair.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n write-probes --halves {input.record:q} {params.truth} {params.radius} --out {params.directory:q} "
        "2>&1 | tee {log:q}"


# A folder from outside holds no results for our probes: its method has the measures that need none.
rule probe_method:
    input:
        records=records("test"),
        halves=halves_of("test"),
        excluded="results/{dataset}/halves/excluded.tsv",
        denoised=lambda wildcards: estimates([wildcards.method], TEST),
        probes=collect("results/{{dataset}}/probes/{probe}.json", probe=PROBES),
        made=lambda wildcards: estimates([wildcards.method], PROBES) if takes_probes(wildcards.method) else [],
        truth=truth_of(TEST),
        labels=config["compare"]["labels"] or [],
    output:
        readings="results/{dataset}/panel/{method}.tsv",
        transfers="results/{dataset}/panel/{method}_transfers.tsv",
    log:
        "logs/probe_method/{dataset}/{method}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="1h",
    params:
        denoised=lambda wildcards, input: Path(input.denoised[0]).parent,
        probes=lambda wildcards: f"results/{wildcards.dataset}/probes",
        inputs=lambda wildcards: inputs_of(wildcards.method),
        without=lambda wildcards: "" if takes_probes(wildcards.method) else "--without-probes",
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        labels=optional("--labels", config["compare"]["labels"]),
        code=code_version(
            "hallucination_probe.py",
            "hallucination.py",
            "compare.py",
            "fourier.py",
            "half_errors.py",
            "halves.py",
            "metrics.py",
            "pair.py",
            "particles.py",
            "phantom.py",
            "phantom_molecule.py",
            "picking.py",
            "pooling.py",
            "probes.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n probe-method --method {wildcards.method} --halves {input.records:q} --denoised {params.denoised:q} "
        "--inputs {params.inputs} --probes {params.probes:q} {params.without} --excluded {input.excluded:q} "
        "{params.truth} {params.labels} --readings {output.readings:q} --transfers {output.transfers:q} "
        "2>&1 | tee {log:q}"


rule write_panel:
    input:
        readings=collect("results/{{dataset}}/panel/{method}.tsv", method=METHODS),
    output:
        panel=report(
            "results/{dataset}/panel.tsv",
            caption="../report/panel.rst",
            category="Comparison",
            labels={"What": "what the methods invent"},
        ),
    log:
        "logs/write_panel/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="1GB",
        runtime="10m",
    params:
        code=code_version(
            "hallucination_panel.py",
            "hallucination_lights.py",
            "hallucination.py",
            "fourier.py",
            "half_errors.py",
            "metrics.py",
            "picking.py",
            "pooling.py",
        ),
    shell:
        "cryon2n write-panel --readings {input.readings:q} --panel {output.panel:q} 2>&1 | tee {log:q}"


# Topaz's pretrained detector, where its environment is built for a method anyway.
rule pick_topaz:
    input:
        env="results/topaz-env/ready.json",
        records=records("test"),
        halves=halves_of("test"),
        excluded="results/{dataset}/halves/excluded.tsv",
        denoised=estimates(METHODS, TEST),
        truth=truth_of(TEST),
        labels=config["compare"]["labels"] or [],
    output:
        picks="results/{dataset}/picks_topaz.tsv",
    log:
        "logs/pick_topaz/{dataset}.log",
    benchmark:
        "benchmarks/jobs/pick_topaz/{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 2
    resources:
        gpu=GPU,
        mem="16GB",
        runtime="1h",
    params:
        env=subpath(input.env, parent=True),
        denoised=lambda wildcards: f"results/{wildcards.dataset}/denoised",
        methods=METHODS,
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        labels=optional("--labels", config["compare"]["labels"]),
        device=DEVICE,
        code=code_version(
            "topaz_pick.py",
            "topaz_run.py",
            "picking_score.py",
            "compare.py",
            "fourier.py",
            "half_errors.py",
            "metrics.py",
            "pair.py",
            "particles.py",
            "picking.py",
            "pooling.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n pick-topaz --env {params.env:q} --halves {input.records:q} --denoised {params.denoised:q} "
        "--methods {params.methods:q} --excluded {input.excluded:q} {params.truth} {params.labels} "
        "--device {params.device} --threads {threads} --picks {output.picks:q} 2>&1 | tee {log:q}"


rule score_picking:
    input:
        records=records("test"),
        halves=halves_of("test"),
        excluded="results/{dataset}/halves/excluded.tsv",
        denoised=estimates(METHODS, TEST),
        truth=truth_of(TEST),
        labels=config["compare"]["labels"] or [],
        picks="results/{dataset}/picks_topaz.tsv" if set(METHODS) & set(TOPAZ) else [],
    output:
        table=report(
            "results/{dataset}/picking.tsv",
            caption="../report/picking.rst",
            category="Comparison",
            labels={"What": "particles picked in what the methods made"},
        ),
        curves="results/{dataset}/picking_curves.tsv",
    log:
        "logs/score_picking/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="1h",
    params:
        denoised=lambda wildcards: f"results/{wildcards.dataset}/denoised",
        methods=METHODS,
        reference=config["compare"]["reference"],
        bootstrap=config["compare"]["bootstrap"],
        seed=config["compare"]["seed"],
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        labels=optional("--labels", config["compare"]["labels"]),
        picks=lambda wildcards, input: optional("--picks", input.picks),
        code=code_version(
            "picking_score.py",
            "compare.py",
            "fourier.py",
            "half_errors.py",
            "metrics.py",
            "pair.py",
            "particles.py",
            "picking.py",
            "pooling.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n score-picking --halves {input.records:q} --denoised {params.denoised:q} --methods {params.methods:q} "
        "--excluded {input.excluded:q} {params.truth} {params.labels} {params.picks} --reference {params.reference} "
        "--bootstrap {params.bootstrap} --seed {params.seed} --table {output.table:q} --curves {output.curves:q} "
        "2>&1 | tee {log:q}"
