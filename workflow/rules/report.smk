"""
The plan before, the report after.

REQUIRED INPUTS
    tables, halves and denoised test micrographs
OUTPUTS
    results/{dataset}/plan.txt, report.html, gallery/index.html, comparison.md, ro-crate-metadata.json
"""


rule plan:
    output:
        text="results/{dataset}/plan.txt",
    log:
        "logs/plan/{dataset}.log",
    localrule: True
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    params:
        config=whole_config,
        code=code_version(
            "plan.py",
            "device.py",
            "folds.py",
            "fourier.py",
            "frame_range.py",
            "loaders.py",
            "loader_base.py",
            "loader_resident.py",
            "loader_window.py",
            "crops.py",
            "symmetry.py",
            "patch_files.py",
            "waits.py",
            "movie_header.py",
            "movie_sheet.py",
            "names.py",
            "outside.py",
            "pair.py",
            "pair_sheet.py",
            "phantom.py",
            "phantom_molecule.py",
            "phantom_record.py",
            "phantom_stage.py",
            "shards.py",
            "shards_tiles.py",
            "study.py",
            "tiff_header.py",
            "web.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n plan --config-json {params.config:q} --out {output.text:q} 2>&1 | tee {log:q}"


rule write_report:
    input:
        plan="results/{dataset}/plan.txt",
        audit="results/{dataset}/halves/audit.tsv",
        excluded="results/{dataset}/halves/excluded.tsv",
        audit_figure="results/{dataset}/halves/audit.png",
        summary="results/{dataset}/summary.tsv",
        metrics="results/{dataset}/metrics.tsv",
        curves="results/{dataset}/curves.tsv",
        cost="results/{dataset}/cost.tsv",
        panel="results/{dataset}/panel.tsv" if PANEL else [],
        picking=multiext("results/{dataset}/picking", ".tsv", "_curves.tsv") if PICKING else [],
        training=collect("results/{{dataset}}/models/{fold}{model}/metrics.json", fold=FOLDS, model=MODELS),
        forms=collect("results/{{dataset}}/models/{fold}{model}/forms.tsv", fold=list(FOLDS)[:1], model=MODELS),
        history=collect("results/{{dataset}}/models/{fold}{model}/log.csv", fold=FOLDS, model=MODELS),
        denoised=estimates(METHODS, TEST),
        records=records("test"),
        truth=truth_of(TEST),
        templates=collect("src/cryon2n/templates/{page}.html", page=["report", "gallery"]),
    output:
        report="results/{dataset}/report.html",
        gallery="results/{dataset}/gallery/index.html",
    log:
        "logs/write_report/{dataset}.log",
    benchmark:
        "benchmarks/jobs/write_report/{dataset}.tsv"
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="8GB",
        runtime="30m",
    params:
        config=whole_config,
        results=subpath(output.report, parent=True),
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        code=code_version(
            "report.py",
            "audit_rules.py",
            "compare.py",
            "compare_cost.py",
            "compare_figures.py",
            "figures.py",
            "filters.py",
            "filters_nlm.py",
            "folds.py",
            "fourier.py",
            "metrics.py",
            "hallucination.py",
            "hallucination_lights.py",
            "half_errors.py",
            "pair.py",
            "pair_sheet.py",
            "particles.py",
            "picking.py",
            "picking_score.py",
            "pooling.py",
            "report_panel.py",
            "report_tables.py",
            "report_training.py",
            "software.py",
            "mrcio.py",
        ),
    shell:
        "cryon2n write-report --config-json {params.config:q} --results {params.results:q} --test {input.records:q} "
        "{params.truth} --report {output.report:q} --gallery {output.gallery:q} 2>&1 | tee {log:q}"


rule compare_doc:
    input:
        summary="results/{dataset}/summary.tsv",
        metrics="results/{dataset}/metrics.tsv",
        curves="results/{dataset}/curves.tsv",
        cost="results/{dataset}/cost.tsv",
        denoised=estimates(METHODS, TEST),
        template="src/cryon2n/templates/comparison.md",
    output:
        page="results/{dataset}/comparison.md",
        intervals="results/{dataset}/figures/intervals.svg",
        curves="results/{dataset}/figures/cross_frc.svg",
    log:
        "logs/compare_doc/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 1
    resources:
        mem="2GB",
        runtime="10m",
    params:
        results=subpath(output.page, parent=True),
        figures=subpath(output.curves, parent=True),
        models=MODELS,
        folds=config["split"]["folds"] or 0,
        reference=config["compare"]["reference"],
        bootstrap=config["compare"]["bootstrap"],
        code=code_version(
            "compare_doc.py",
            "compare_cost.py",
            "compare_figures.py",
            "figures.py",
            "folds.py",
            "fourier.py",
            "half_errors.py",
            "metrics.py",
            "pooling.py",
            "report_tables.py",
        ),
    shell:
        "cryon2n compare-doc --results {params.results:q} --ours {params.models} --reference {params.reference} "
        "--folds {params.folds} --bootstrap {params.bootstrap} --metrics-page ../../docs/metrics.md --figures {params.figures:q} "
        "--out {output.page:q} 2>&1 | tee {log:q}"


# What the record tells changes from run to run (date, machine), but nothing depends on it.
rule write_crate:
    input:
        finished(),
    output:
        crate="results/{dataset}/ro-crate-metadata.json",
    log:
        "logs/write_crate/{dataset}.log",
    conda:
        "../../envs/cryon2n.yaml"
    threads: 4
    resources:
        mem="2GB",
        runtime="1h",
    params:
        config=whole_config,
        results=subpath(output.crate, parent=True),
        truth=f"--truth data/{DATASET}/truth" if KIND == "phantom" else "",
        code=code_version("crate.py", "software.py"),
    shell:
        "cryon2n write-crate --config-json {params.config:q} --results {params.results:q} {params.truth} "
        "--threads {threads} 2>&1 | tee {log:q}"
