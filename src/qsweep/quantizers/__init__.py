"""Methods with their options, each one file here and one YAML in ``conf/quant``."""
