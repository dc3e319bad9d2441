"""What the command line offers; no torch here, so that --help is instant."""

EVALUATED = "dense,draft,fastvar,moss2,moss3,moss4,moss5,moss4-sa,moss4-unguided"  # for `methods.parse_methods`
