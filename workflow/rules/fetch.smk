"""
Raw movies and references, from wherever the config says.

REQUIRED INPUTS
    nothing (phantom), a movie sheet (empiar, movies); kind `halves` has no movies
OUTPUTS
    data/{dataset}/raw/{mic}{ending} (.mrc, .tif, .eer …), gain.mrc, dark.mrc; phantom also entry.json and truth/
"""

if KIND == "phantom":

    rule simulate_references:
        output:
            gain="data/{dataset}/raw/gain.mrc",
            dark="data/{dataset}/raw/dark.mrc",
            entry="data/{dataset}/raw/entry.json",
        log:
            "logs/simulate_references/{dataset}.log",
        benchmark:
            "benchmarks/jobs/simulate_references/{dataset}.tsv"
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            mem="2GB",
            runtime="10m",
        params:
            settings=settings("source", "phantom"),
            n=len(MICROGRAPHS),
            code=code_version(
                "phantom.py", "phantom_molecule.py", "phantom_record.py", "phantom_stage.py", "fourier.py", "mrcio.py"
            ),
        shell:
            "cryon2n simulate-references --settings {params.settings:q} --set n_movies={params.n} --gain {output.gain:q} --dark {output.dark:q} "
            "--entry {output.entry:q} 2>&1 | tee {log:q}"

    rule simulate_movie:
        input:
            gain="data/{dataset}/raw/gain.mrc",
            dark="data/{dataset}/raw/dark.mrc",
        output:
            movie="data/{dataset}/raw/{mic}.mrc",
            truth="data/{dataset}/truth/{mic}.mrc",
            record="data/{dataset}/truth/{mic}.json",
        log:
            "logs/simulate_movie/{dataset}/{mic}.log",
        benchmark:
            "benchmarks/jobs/simulate_movie/{dataset}/{mic}.tsv"
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            mem="4GB",
            runtime="30m",
        params:
            settings=settings("source", "phantom"),
            index=lambda wildcards: MICROGRAPHS.index(wildcards.mic),
            code=code_version(
                "phantom.py", "phantom_molecule.py", "phantom_record.py", "phantom_stage.py", "fourier.py", "mrcio.py"
            ),
        shell:
            "cryon2n simulate-movie --settings {params.settings:q} --index {params.index} --name {wildcards.mic:q} "
            "--gain {input.gain:q} --dark {input.dark:q} --movie {output.movie:q} --truth {output.truth:q} "
            "--record {output.record:q} --threads {threads} 2>&1 | tee {log:q}"

elif KIND == "empiar":

    # Which mirror is asked, and how (`polite`), changes no byte: as a parameter, a change of it would fetch 30 GB
    # again.  For the same reason the rules have no code version.
    shell.prefix(SHELL_PREFIX + f'politely() {{{{ "$@" {polite()}; }}}}; ')

    rule fetch_movie:
        output:
            movie="data/{dataset}/raw/{mic}{ending}",
        log:
            "logs/fetch_movie/{dataset}/{mic}{ending}.log",
        benchmark:
            "benchmarks/jobs/fetch_movie/{dataset}/{mic}{ending}.tsv"
        localrule: True
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            downloads=1,
            mem="1GB",
            runtime="6h",
        params:
            path=lambda wildcards: STUDY.sources[wildcards.mic]["archive_path"],
            known=lambda wildcards: STUDY.sources[wildcards.mic]["known"],
        shell:
            "politely cryon2n fetch-movie --path {params.path:q} {params.known} --out {output.movie:q} 2>&1 | tee {log:q}"

    rule fetch_reference:
        output:
            reference="data/{dataset}/raw/{reference}{format}",
        log:
            "logs/fetch_reference/{dataset}/{reference}{format}.log",
        localrule: True
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        resources:
            downloads=1,
            mem="1GB",
            runtime="1h",
        params:
            path=lambda wildcards: STUDY.references[wildcards.reference]["archive_path"],
        shell:
            "politely cryon2n fetch-movie --path {params.path:q} --out {output.reference:q} 2>&1 | tee {log:q}"

elif KIND == "movies":

    rule link_movie:
        input:
            movie=lambda wildcards: STUDY.sources[wildcards.mic]["path"],
        output:
            movie="data/{dataset}/raw/{mic}{ending}",
        log:
            "logs/link_movie/{dataset}/{mic}{ending}.log",
        localrule: True
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        shell:
            'ln -sfv "$(realpath {input.movie:q})" {output.movie:q} > {log:q} 2>&1'

    rule link_reference:
        input:
            reference=lambda wildcards: STUDY.references[wildcards.reference]["path"],
        output:
            reference="data/{dataset}/raw/{reference}{format}",
        log:
            "logs/link_reference/{dataset}/{reference}{format}.log",
        localrule: True
        conda:
            "../../envs/cryon2n.yaml"
        threads: 1
        shell:
            'ln -sfv "$(realpath {input.reference:q})" {output.reference:q} > {log:q} 2>&1'
