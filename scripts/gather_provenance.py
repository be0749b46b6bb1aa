"""Write down what the study's results were made from, and what every job took."""

from forebear.runtime.job import start

start(snakemake)

import json
from pathlib import Path

from forebear.report.provenance import gather_provenance
from forebear.runtime.atomic import atomic_path
from forebear.runtime.redaction import redacted

params = snakemake.params
found = gather_provenance(params.study, params.config, params.seeds, list(snakemake.input), Path(params.results))
with atomic_path(snakemake.output.provenance) as path:
    path.write_text(redacted(json.dumps(found, indent=2)) + "\n", encoding="utf-8")
