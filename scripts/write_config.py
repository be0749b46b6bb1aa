"""Write a study's config down as it counts: defaults filled in, config files merged."""

from forebear.runtime.job import start

start(snakemake)

import yaml

from forebear.runtime.atomic import atomic_path

content = {"studies": {snakemake.params.study: snakemake.params.config}}
with atomic_path(snakemake.output.config) as path:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
