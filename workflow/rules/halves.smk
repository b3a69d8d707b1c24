"""
Two half micrographs with independent noise, and their audit.

REQUIRED INPUTS
    data/{dataset}/raw/{mic}{ending}, gain and dark if there are any; or a sheet of pairs (kind `halves`)
OUTPUTS
    results/{dataset}/halves/{mic}_a.mrc, {mic}_b.mrc, {mic}.json, {mic}_groups.mrc (halves: groups beyond 2),
    qc/{mic}.png, audit.tsv, audit_rings.tsv, audit.png, excluded.tsv
"""

if KIND == "halves":

    rule import_halves:
        input:
            a=lambda wildcards: STUDY.sources[wildcards.mic]["a"],
            b=lambda wildcards: STUDY.sources[wildcards.mic]["b"],
        output:
            a="results/{dataset}/halves/{mic}_a.mrc",
            b="results/{dataset}/halves/{mic}_b.mrc",
            record="results/{dataset}/halves/{mic}.json",
        log:
            "logs/import_halves/{dataset}/{mic}.log",
        benchmark:
            "benchmarks/jobs/import_halves/{dataset}/{mic}.tsv"
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            mem="4GB",
            runtime="10m",
        params:
            about=lambda wildcards: STUDY.sources[wildcards.mic]["about"],
            prefix=subpath(output.record, strip_suffix=".json"),
            code=code_version(
                "halves_import.py",
                "border.py",
                "repair.py",
                "pair_check.py",
                "pair_sheet.py",
                "halves.py",
                "fourier.py",
                "pair.py",
                "mrcio.py",
            ),
        shell:
            "cryon2n import-halves --a {input.a:q} --b {input.b:q} {params.about} --out {params.prefix:q} "
            "2>&1 | tee {log:q}"

else:

    rule split_halves:
        input:
            movie=lambda wildcards: raw_movie(wildcards.mic),
            gain=reference_file("gain"),
            dark=reference_file("dark"),
            defects=config["halves"].get("defects") or [],
        output:
            a="results/{dataset}/halves/{mic}_a.mrc",
            b="results/{dataset}/halves/{mic}_b.mrc",
            record="results/{dataset}/halves/{mic}.json",
            groups="results/{dataset}/halves/{mic}_groups.mrc" if config["halves"]["groups"] > 2 else [],
        log:
            "logs/split_halves/{dataset}/{mic}.log",
        benchmark:
            "benchmarks/jobs/split_halves/{dataset}/{mic}.tsv"
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            gpu=GPU,
            mem="12GB",
            runtime="30m",
        params:
            device=DEVICE,
            settings=halves_settings(),
            gain=lambda wildcards, input: optional("--gain", input.gain),
            dark=lambda wildcards, input: optional("--dark", input.dark),
            prefix=subpath(output.record, strip_suffix=".json"),
            code=code_version(
                "split.py",
                "split_done.py",
                "split_many.py",
                "split_workers.py",
                "split_stage.py",
                "alignment.py",
                "device.py",
                "dm4.py",
                "dose.py",
                "fourier.py",
                "frame_range.py",
                "frames.py",
                "frames_tiff.py",
                "gain.py",
                "gain_tiles.py",
                "halves.py",
                "local_motion.py",
                "motion.py",
                "motion_prior.py",
                "movie_header.py",
                "movies.py",
                "names.py",
                "mrcio.py",
                "pair.py",
                "references.py",
                "repair.py",
                "tiff_header.py",
                "warp.py",
            ),
        shell:
            "cryon2n split-halves --movie {input.movie:q} {params.gain} {params.dark} --out {params.prefix:q} "
            "--settings {params.settings:q} --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule audit_halves:
    input:
        records=collect("results/{{dataset}}/halves/{mic}.json", mic=MICROGRAPHS),
        halves=collect("results/{{dataset}}/halves/{mic}_{side}.mrc", mic=MICROGRAPHS, side=["a", "b"]),
    output:
        table="results/{dataset}/halves/audit.tsv",
        rings="results/{dataset}/halves/audit_rings.tsv",
        excluded="results/{dataset}/halves/excluded.tsv",
        figure=report(
            "results/{dataset}/halves/audit.png",
            caption="../report/audit.rst",
            category="Halves",
            labels={"What": "audit of the halves"},
        ),
    log:
        "logs/audit_halves/{dataset}.log",
    benchmark:
        "benchmarks/jobs/audit_halves/{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 4
    resources:
        mem="12GB",
        runtime="2h",
    params:
        settings=settings("audit"),
        code=code_version(
            "audit.py", "audit_checks.py", "audit_rules.py", "dose.py", "fourier.py", "pair.py", "mrcio.py"
        ),
    shell:
        "cryon2n audit-halves --halves {input.records:q} --table {output.table:q} --rings {output.rings:q} "
        "--excluded {output.excluded:q} --figure {output.figure:q} --settings {params.settings:q} --threads {threads} 2>&1 | tee {log:q}"


rule plot_halves:
    input:
        record="results/{dataset}/halves/{mic}.json",
        halves=multiext("results/{dataset}/halves/{mic}", "_a.mrc", "_b.mrc"),
    output:
        figure=report(
            "results/{dataset}/halves/qc/{mic}.png",
            caption="../report/halves.rst",
            category="Halves",
            labels={"What": "{mic}"},
        ),
    log:
        "logs/plot_halves/{dataset}/{mic}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="4GB",
        runtime="10m",
    params:
        code=code_version("halves_figure.py", "audit_checks.py", "figures.py", "fourier.py", "pair.py", "mrcio.py"),
    shell:
        "cryon2n plot-halves --halves {input.record:q} --figure {output.figure:q} 2>&1 | tee {log:q}"
